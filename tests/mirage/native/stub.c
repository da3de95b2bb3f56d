/* A CUDA that only keeps accounts: device memory is a number, nothing is ever executed. Written from the public
 * names of the CUDA runtime, driver and NVML interfaces; enough of them for libc10_cuda.so to run its allocator.
 *
 * One file serves as libcudart.so.N, libcuda.so.1 and libnvidia-ml.so.1 (symbolic links), so all share the accounts.
 * Environment: STUB_TOTAL (bytes of the device), STUB_OTHERS (bytes in use by others), STUB_ORDER (ascending,
 * descending, or the number that seeds scattered addresses), STUB_LAG (how many further allocations an event takes to
 * complete; "inf": until somebody waits for it).
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define GRANULE (2 * MIB)
#define OUT_OF_MEMORY 2
#define NOT_READY 600
#define INVALID 1

/* ---- the device: bytes in use and addresses ---- */
static size_t used, capacity, others;
static long long order; /* 0 ascending, -1 descending, otherwise a seed */
static uint64_t low = 0x600000000000ull, high = 0x680000000000ull, slot;
static long long lag, ticks, recorded, synchronised;
static int ready;

static void setup(void) {
  const char *text;
  if (ready) return;
  ready = 1;
  text = getenv("STUB_TOTAL");
  capacity = text ? strtoull(text, 0, 10) : 64ull << 30;
  text = getenv("STUB_OTHERS");
  others = text ? strtoull(text, 0, 10) : 0;
  text = getenv("STUB_ORDER");
  order = !text || !strcmp(text, "ascending") ? 0 : !strcmp(text, "descending") ? -1 : atoll(text);
  text = getenv("STUB_LAG");
  lag = !text ? 0 : !strcmp(text, "inf") ? (1ll << 60) : atoll(text);
}

static uint64_t place(size_t size) {
  uint64_t at;
  if (order == 0) { at = low; low += size + GRANULE; return at; }
  if (order < 0) { high -= size + GRANULE; return high; }
  /* odd multiplier modulo 2^20: every slot of 1 TiB is handed out once */
  at = ((slot++ * 0x9E3B1ull) + (uint64_t)order * 0x3C6EFull) & 0xFFFFF;
  return (at + 1) << 40;
}

#define SLOTS (1 << 16)
static struct { uint64_t key; size_t size; } table[SLOTS];
static size_t *entry(uint64_t key) {
  size_t i = (key >> 21) * 0x9E3779B97F4A7C15ull >> 48;
  while (table[i].key && table[i].key != key) i = (i + 1) % SLOTS;
  table[i].key = key;
  return &table[i].size;
}

int cudaMalloc(void **out, size_t size) {
  size_t whole = (size + GRANULE - 1) / GRANULE * GRANULE;
  setup();
  if (used + whole + others > capacity) { *out = 0; return OUT_OF_MEMORY; }
  *out = (void *)place(whole);
  *entry((uint64_t)*out) = whole;
  used += whole;
  return 0;
}
int cudaFree(void *p) {
  if (p) { used -= *entry((uint64_t)p); *entry((uint64_t)p) = 0; }
  return 0;
}
int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  setup();
  *total = capacity;
  *free_bytes = capacity - used - others;
  return 0;
}

/* ---- events ---- */
void stub_tick(void) { ticks++; }
int cudaEventCreateWithFlags(void **out, unsigned flags) { *out = calloc(1, 64); return 0; }
int cudaEventDestroy(void *e) { free(e); return 0; }
int cudaEventRecord(long long *e, void *stream) { e[0] = ticks; e[1] = ++recorded; return 0; }
int cudaEventQuery(long long *e) {
  setup();
  return e[1] <= synchronised || ticks - e[0] >= lag ? 0 : NOT_READY;
}
int cudaEventSynchronize(long long *e) { e[1] = 0; return 0; }
int cudaDeviceSynchronize(void) { synchronised = recorded; return 0; }

/* ---- the rest of the runtime ---- */
int cudaGetDeviceCount(int *n) { *n = 1; return 0; }
int cudaGetDevice(int *d) { *d = 0; return 0; }
int cudaSetDevice(int d) { return 0; }
int cudaDriverGetVersion(int *v) { *v = 13020; return 0; }
/* public layout: name[256], uuid (16), luid[8], node mask (4, padded to 8), total memory; the rest is not touched */
static int properties(char *p) { setup(); strcpy(p, "stub"); memcpy(p + 288, &capacity, sizeof capacity); return 0; }
int cudaGetDeviceProperties(char *p, int d) { return properties(p); }
int cudaGetDeviceProperties_v2(char *p, int d) { return properties(p); }
int cudaGetLastError(void) { return 0; }
const char *cudaGetErrorString(int e) { return e == OUT_OF_MEMORY ? "out of memory" : "stub error"; }
const char *cudaGetErrorName(int e) { return e == OUT_OF_MEMORY ? "cudaErrorMemoryAllocation" : "stubError"; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
static uintptr_t handles = 0x10000;
int cudaStreamCreateWithPriority(void **out, unsigned flags, int priority) { *out = (void *)(handles += 16); return 0; }
static int capturing;
void stub_capture(int on) { capturing = on; }
int cudaStreamIsCapturing(void *s, int *status) { *status = capturing; return 0; }
int cudaStreamGetCaptureInfo(void *s, int *status, unsigned long long *id) {
  *status = capturing;
  if (id) *id = 1;
  return 0;
}
int cudaStreamGetCaptureInfo_v2(void *s, int *status, unsigned long long *id) {
  return cudaStreamGetCaptureInfo(s, status, id);
}
int cudaDeviceCanAccessPeer(int *yes, int a, int b) { *yes = 0; return 0; }
#define NOTHING(name) int name(void) { return 0; }
#define REFUSED(name) int name(void) { return INVALID; }
NOTHING(cudaStreamQuery) NOTHING(cudaStreamSynchronize) NOTHING(cudaStreamWaitEvent) NOTHING(cudaEventElapsedTime)
NOTHING(cudaThreadExchangeStreamCaptureMode) NOTHING(cudaMemcpy) NOTHING(cudaMemcpyAsync) NOTHING(cudaMemcpyPeerAsync)
NOTHING(cudaDeviceEnablePeerAccess) NOTHING(cudaStreamUpdateCaptureDependencies)
REFUSED(cudaMallocAsync) REFUSED(cudaFreeAsync) REFUSED(cudaDeviceGetDefaultMemPool) REFUSED(cudaMemPoolGetAttribute)
REFUSED(cudaMemPoolSetAccess) REFUSED(cudaMemPoolSetAttribute) REFUSED(cudaMemPoolTrimTo)
REFUSED(cudaIpcCloseMemHandle) REFUSED(cudaIpcGetMemHandle) REFUSED(cudaIpcOpenMemHandle)
REFUSED(cudaGraphAddEmptyNode) REFUSED(cudaGraphNodeGetDependencies) REFUSED(cudaGraphNodeGetType)
REFUSED(cudaDeviceGetGraphMemAttribute) REFUSED(cudaDeviceSetGraphMemAttribute)

/* ---- driver interface: virtual memory for expandable segments ---- */
int cuMemAddressReserve(uint64_t *out, size_t size, size_t align, uint64_t hint, unsigned long long flags) {
  setup();
  *out = place((size + GRANULE - 1) / GRANULE * GRANULE);
  return 0;
}
int cuMemCreate(uint64_t *out, size_t size, const void *prop, unsigned long long flags) {
  setup();
  if (used + size + others > capacity) return OUT_OF_MEMORY;
  *out = (uint64_t)(handles += 16) << 21; /* spread like an address, so that the table can hash it */
  *entry(*out) = size;
  used += size;
  return 0;
}
int cuMemRelease(uint64_t handle) { used -= *entry(handle); *entry(handle) = 0; return 0; }
int cuMemGetAllocationGranularity(size_t *out) { *out = GRANULE; return 0; }
int cuGetErrorString(int e, const char **out) { *out = e == OUT_OF_MEMORY ? "out of memory" : "stub error"; return 0; }
int cuDeviceGetAttribute(int *out, int which, int d) { *out = 0; return 0; }
int cuDeviceGet(int *d, int ordinal) { *d = ordinal; return 0; }
int cuCtxGetCurrent(void **c) { *c = (void *)16; return 0; }
int cuDevicePrimaryCtxGetState(int d, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
NOTHING(nvmlDeviceGetGpuFabricInfoV) NOTHING(cuMemAddressFree) NOTHING(cuMemMap) NOTHING(cuMemUnmap) NOTHING(cuMemSetAccess) NOTHING(cuCtxSetCurrent)
NOTHING(cuCtxPopCurrent) NOTHING(cuCtxPushCurrent) NOTHING(cuLogsRegisterCallback) NOTHING(cuLogsUnregisterCallback)
REFUSED(cuMemExportToShareableHandle) REFUSED(cuMemImportFromShareableHandle) REFUSED(cuMemsetD32Async)
REFUSED(cuStreamWriteValue32) REFUSED(cuMulticastAddDevice) REFUSED(cuMulticastBindMem) REFUSED(cuMulticastCreate)
REFUSED(cuMulticastUnbind) REFUSED(cuMemGetAddressRange) REFUSED(cuMemRetainAllocationHandle)
REFUSED(cuMemGetAllocationPropertiesFromHandle) REFUSED(cuCtxFromGreenCtx) REFUSED(cuGreenCtxCreate)
REFUSED(cuGreenCtxDestroy) REFUSED(cuGreenCtxStreamCreate) REFUSED(cuDevSmResourceSplitByCount)
REFUSED(cuDeviceGetDevResource) REFUSED(cuDevResourceGenerateDesc)

/* ---- NVML: one process, ours ---- */
struct process { unsigned pid; unsigned long long bytes; };
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **out) { *out = (void *)16; return 0; }
int nvmlDeviceGetComputeRunningProcesses(void *d, unsigned *n, struct process *list) {
  setup();
  if (*n) { list[0].pid = (unsigned)getpid(); list[0].bytes = used + others; }
  *n = 1;
  return 0;
}
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 13020; return 0; }
REFUSED(nvmlDeviceGetNvLinkRemoteDeviceType) REFUSED(nvmlDeviceGetNvLinkRemotePciInfo_v2)

typedef int (*function)(void);
static const struct { const char *name; function call; } by_name[] = {
#define NAME(n) {#n, (function)n},
    NAME(cuMemAddressReserve) NAME(cuMemCreate) NAME(cuMemRelease) NAME(cuMemGetAllocationGranularity)
    NAME(cuGetErrorString) NAME(cuDeviceGetAttribute) NAME(cuDeviceGet) NAME(cuCtxGetCurrent)
    NAME(cuDevicePrimaryCtxGetState) NAME(cuMemAddressFree) NAME(cuMemMap) NAME(cuMemUnmap) NAME(cuMemSetAccess)
    NAME(cuCtxSetCurrent) NAME(cuCtxPopCurrent) NAME(cuCtxPushCurrent) NAME(cuLogsRegisterCallback)
    NAME(cuLogsUnregisterCallback)};
int cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned version, unsigned long long flags,
                                     int *result) {
  *out = (void *)cuMulticastCreate; /* anything else: refused */
  for (size_t i = 0; i < sizeof by_name / sizeof *by_name; i++)
    if (!strcmp(name, by_name[i].name)) *out = (void *)by_name[i].call;
  if (result) *result = 0;
  return 0;
}
int cudaGetDriverEntryPoint(const char *name, void **out, unsigned long long flags, int *result) {
  return cudaGetDriverEntryPointByVersion(name, out, 0, flags, result);
}
