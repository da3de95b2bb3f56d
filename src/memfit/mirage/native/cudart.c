/* libcudart: the CUDA runtime. CUDA_MAJOR says whose layouts and argument lists are meant. */
#define _GNU_SOURCE
#include "mirage.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  unsigned x, y, z;
} dim3;
int mirage_driver_entry(const char *name, void **out); /* libcuda.so.1 */
int mirage_attribute(int *out, int attribute, int device);

/* ---- errors: the last one of a thread is kept until asked for ---- */
static __thread int last_error;
static int answer(int error) {
  if (error && error != NOT_READY) last_error = error;
  return error;
}
EXPORT int cudaGetLastError(void) {
  int error = last_error;
  last_error = OK;
  return error;
}
EXPORT int cudaPeekAtLastError(void) { return last_error; }

static const struct {
  int code;
  const char *name, *text;
} errors[] = {
    {OK, "cudaSuccess", "no error"},
    {INVALID_VALUE, "cudaErrorInvalidValue", "invalid argument"},
    {OUT_OF_MEMORY, "cudaErrorMemoryAllocation", "out of memory"},
    {INVALID_DEVICE, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {INVALID_HANDLE, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {NOT_FOUND, "cudaErrorSymbolNotFound", "named symbol not found"},
    {NOT_READY, "cudaErrorNotReady", "device not ready"},
    {NOT_SUPPORTED, "cudaErrorNotSupported", "operation not supported"},
    {CAPTURE_UNSUPPORTED, "cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
};
EXPORT const char *cudaGetErrorName(int error) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == error) return errors[i].name;
  return "unrecognized error code";
}
EXPORT const char *cudaGetErrorString(int error) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == error) return errors[i].text;
  return "unrecognized error code";
}

/* ---- devices ---- */
EXPORT int cudaGetDeviceCount(int *out) {
  *out = mirage_device()->count;
  return *out ? OK : answer(100);
}
EXPORT int cudaGetDevice(int *out) {
  *out = mirage_current();
  return OK;
}
EXPORT int cudaSetDevice(int device) { return answer(mirage_select(device)); }
EXPORT int cudaInitDevice(int device) { return answer(device < mirage_device()->count ? OK : INVALID_DEVICE); }
EXPORT int cudaDriverGetVersion(int *out) {
  *out = mirage_device()->cuda;
  return OK;
}
EXPORT int cudaRuntimeGetVersion(int *out) {
  *out = mirage_device()->cuda;
  return OK;
}

/* The documented members in their documented order; those that CUDA 13 removed are marked. */
typedef struct {
  char name[256], uuid[16], luid[8];
  unsigned luid_mask;
  size_t total_memory, shared_per_block;
  int registers_per_block, warp_size;
  size_t pitch;
  int threads_per_block, block_dimensions[3], grid_dimensions[3];
#if CUDA_MAJOR < 13
  int clock_khz;
#endif
  size_t constant_memory;
  int major, minor;
  size_t texture_alignment, texture_pitch_alignment;
#if CUDA_MAJOR < 13
  int device_overlap;
#endif
  int multiprocessors;
#if CUDA_MAJOR < 13
  int kernel_timeout;
#endif
  int integrated, map_host_memory;
#if CUDA_MAJOR < 13
  int compute_mode;
#endif
  int texture_1d, texture_1d_mipmap;
#if CUDA_MAJOR < 13
  int texture_1d_linear;
#endif
  int texture_2d[2], texture_2d_mipmap[2], texture_2d_linear[3], texture_2d_gather[2];
  int texture_3d[3], texture_3d_alternate[3], texture_cubemap, texture_1d_layered[2], texture_2d_layered[3];
  int texture_cubemap_layered[2], surface_1d, surface_2d[2], surface_3d[3], surface_1d_layered[2];
  int surface_2d_layered[3], surface_cubemap, surface_cubemap_layered[2];
  size_t surface_alignment;
  int concurrent_kernels, ecc, pci_bus, pci_device, pci_domain, tcc, copy_engines, unified_addressing;
#if CUDA_MAJOR < 13
  int memory_khz;
#endif
  int bus_bits, l2_bytes, persisting_l2_bytes, threads_per_multiprocessor, stream_priorities, global_l1, local_l1;
  size_t shared_per_multiprocessor;
  int registers_per_multiprocessor, managed_memory, multi_gpu_board, board_group, host_atomics;
#if CUDA_MAJOR < 13
  int double_ratio;
#endif
  int pageable_access, concurrent_managed, preemption, host_pointer_for_registered, cooperative_launch;
#if CUDA_MAJOR < 13
  int cooperative_multi_device;
#endif
  size_t shared_per_block_opt_in;
  int pageable_host_tables, direct_managed, blocks_per_multiprocessor, access_window;
  size_t reserved_shared_per_block;
  int host_register, sparse_arrays, read_only_register, timeline_semaphores, memory_pools;
} properties;

EXPORT int cudaGetDeviceProperties_v2(properties *out, int device) {
  const mirage_gpu *gpu = mirage_device();
  if (device < 0 || device >= gpu->count) return answer(INVALID_DEVICE);
  memset(out, 0, sizeof *out);
  memcpy(out->name, gpu->name, sizeof out->name);
  memcpy(out->uuid, "memfit imaginary", 16);
  out->uuid[15] = (char)('0' + device);
  out->total_memory = gpu->total;
  out->shared_per_block = 48 << 10;
  out->registers_per_block = gpu->registers_per_sm;
  out->warp_size = 32;
  out->pitch = 0x7fffffff;
  out->threads_per_block = 1024;
  out->block_dimensions[0] = out->block_dimensions[1] = 1024;
  out->block_dimensions[2] = 64;
  out->grid_dimensions[0] = 0x7fffffff;
  out->grid_dimensions[1] = out->grid_dimensions[2] = 65535;
  out->constant_memory = 64 << 10;
  out->major = gpu->major;
  out->minor = gpu->minor;
  out->texture_alignment = out->surface_alignment = 512;
  out->texture_pitch_alignment = 32;
  out->multiprocessors = gpu->sms;
  out->integrated = gpu->integrated;
  out->map_host_memory = out->concurrent_kernels = out->unified_addressing = out->managed_memory = 1;
  out->concurrent_managed = out->preemption = out->host_pointer_for_registered = out->cooperative_launch = 1;
  out->global_l1 = out->local_l1 = out->stream_priorities = out->host_register = out->memory_pools = 1;
  out->pci_bus = device + 1;
  out->copy_engines = 3;
  out->bus_bits = gpu->bus_bits;
  out->l2_bytes = gpu->l2;
  out->threads_per_multiprocessor = gpu->threads_per_sm;
  out->shared_per_multiprocessor = (size_t)gpu->shared_per_sm;
  out->registers_per_multiprocessor = gpu->registers_per_sm;
  out->shared_per_block_opt_in = (size_t)gpu->shared_per_block;
  out->blocks_per_multiprocessor = gpu->blocks_per_sm;
  out->reserved_shared_per_block = (size_t)gpu->shared_reserved;
#if CUDA_MAJOR < 13
  out->clock_khz = gpu->clock_khz;
  out->memory_khz = gpu->memory_khz;
  out->device_overlap = 1;
  out->double_ratio = 2;
#endif
  return OK;
}
EXPORT int cudaGetDeviceProperties(properties *out, int device) { return cudaGetDeviceProperties_v2(out, device); }
EXPORT int cudaDeviceGetAttribute(int *out, int attribute, int device) {
  return answer(mirage_attribute(out, attribute, device));
}
EXPORT int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return OK;
}
EXPORT int cudaDeviceCanAccessPeer(int *out, int a, int b) {
  *out = a != b;
  return OK;
}
EXPORT int cudaDeviceGetPCIBusId(char *out, int size, int device) {
  snprintf(out, (size_t)size, "0000:%02X:00.0", device + 1);
  return OK;
}
EXPORT int cudaDeviceGetByPCIBusId(int *out, const char *text) {
  unsigned domain, bus;
  if (sscanf(text, "%x:%x", &domain, &bus) != 2 || !bus || (int)bus > mirage_device()->count) return answer(INVALID_VALUE);
  *out = (int)bus - 1;
  return OK;
}
EXPORT int cudaDeviceGetLimit(size_t *out, int limit) {
  *out = limit == 0 ? 1024 : 8 << 20;
  return OK;
}
EXPORT int cudaDeviceSynchronize(void) { return answer(mirage_device_sync()); }
EXPORT int cudaDeviceReset(void) { return OK; }
EXPORT int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  if (total) *total = mirage_device()->total;
  if (free_bytes) *free_bytes = mirage_free_bytes(mirage_current());
  return OK;
}

/* ---- memory ---- */
EXPORT int cudaMalloc(void **out, size_t size) {
  if (mirage_capture_forbids()) return answer(CAPTURE_UNSUPPORTED);
  return answer(mirage_malloc(mirage_current(), size, out));
}
EXPORT int cudaFree(void *address) {
  if (mirage_capture_forbids()) return answer(CAPTURE_UNSUPPORTED);
  if (mirage_host_kind(address, NULL) == 3) return answer(mirage_host_free(address));
  if (address) mirage_device_sync();
  return answer(mirage_free(address));
}
EXPORT int cudaMallocPitch(void **out, size_t *pitch, size_t width, size_t height) {
  *pitch = (width + 511) / 512 * 512;
  return cudaMalloc(out, *pitch * height);
}
EXPORT int cudaMallocManaged(void **out, size_t size, unsigned flags) {
  (void)flags;
  return answer(mirage_host_alloc(size, 1, out));
}
EXPORT int cudaHostAlloc(void **out, size_t size, unsigned flags) {
  (void)flags;
  return answer(mirage_host_alloc(size, 0, out));
}
EXPORT int cudaMallocHost(void **out, size_t size) { return answer(mirage_host_alloc(size, 0, out)); }
EXPORT int cudaFreeHost(void *address) { return answer(mirage_host_free(address)); }
EXPORT int cudaHostRegister(void *address, size_t size, unsigned flags) {
  (void)flags;
  mirage_host_register(address, size);
  return OK;
}
EXPORT int cudaHostUnregister(void *address) {
  mirage_host_unregister(address);
  return OK;
}
EXPORT int cudaHostGetDevicePointer(void **out, void *address, unsigned flags) {
  (void)flags;
  *out = address;
  return OK;
}
EXPORT int cudaHostGetFlags(unsigned *out, void *address) {
  (void)address;
  *out = 0;
  return OK;
}
typedef struct {
  int type, device;
  void *device_pointer, *host_pointer;
} pointer_attributes;
EXPORT int cudaPointerGetAttributes(pointer_attributes *out, const void *address) {
  int device = mirage_owner(address), kind = device < 0 ? mirage_host_kind(address, NULL) : 2;
  *out = (pointer_attributes){kind, device < 0 ? (kind ? mirage_current() : -2) : device, NULL, NULL};
  if (kind) out->device_pointer = (void *)address;
  if (device < 0) out->host_pointer = (void *)address;
  return OK;
}

/* ---- memory pools (cudaMallocAsync): a pool takes 32 MiB at a time and keeps what it has until it is trimmed ---- */
#define POOL_STEP (32 * MIB)
typedef struct {
  int device;
  size_t used, used_peak, reserved, reserved_peak;
  uint64_t threshold;
} pool;
static pool pools[MAX_DEVICES];
typedef struct pool_block {
  struct pool_block *next;
  void *at;
  size_t size;
  pool *owner;
} pool_block;
static pool_block *pool_blocks;
static int pool_lock;
static void enter(void) {
  while (__atomic_test_and_set(&pool_lock, __ATOMIC_ACQUIRE)) {}
}
static void leave(void) { __atomic_clear(&pool_lock, __ATOMIC_RELEASE); }

static pool *default_pool(int device) {
  pools[device].device = device;
  return &pools[device];
}
static int pool_alloc(pool *p, void **out, size_t size) {
  size_t whole = (size + 511) / 512 * 512, wanted;
  pool_block *block = malloc(sizeof *block);
  int result = OK;
  *out = NULL;
  if (!block) return OUT_OF_MEMORY;
  enter();
  wanted = (p->used + whole + POOL_STEP - 1) / POOL_STEP * POOL_STEP;
  if (wanted > p->reserved && !(result = mirage_take(p->device, wanted - p->reserved))) p->reserved = wanted;
  if (!result && !(*out = (void *)mirage_place(p->device, whole))) result = OUT_OF_MEMORY;
  if (!result) {
    p->used += whole;
    if (p->used > p->used_peak) p->used_peak = p->used;
    if (p->reserved > p->reserved_peak) p->reserved_peak = p->reserved;
    *block = (pool_block){pool_blocks, *out, whole, p};
    pool_blocks = block;
  } else {
    free(block);
  }
  leave();
  return result;
}
static int pool_free(void *address) {
  enter();
  for (pool_block **link = &pool_blocks; *link; link = &(*link)->next)
    if ((*link)->at == address) {
      pool_block *block = *link;
      *link = block->next;
      block->owner->used -= block->size;
      mirage_unplace((uint64_t)address);
      free(block);
      leave();
      return OK;
    }
  leave();
  return INVALID_VALUE;
}
static void pool_trim(pool *p, size_t keep) {
  size_t wanted = (p->used + POOL_STEP - 1) / POOL_STEP * POOL_STEP;
  if (wanted < keep) wanted = keep;
  if (wanted < p->reserved) {
    mirage_give(p->device, p->reserved - wanted);
    p->reserved = wanted;
  }
}
EXPORT int cudaMallocAsync(void **out, size_t size, void *stream) {
  return answer(pool_alloc(default_pool(mirage_stream_device(stream)), out, size));
}
EXPORT int cudaMallocFromPoolAsync(void **out, size_t size, void *which, void *stream) {
  (void)stream;
  return answer(pool_alloc(which, out, size));
}
EXPORT int cudaFreeAsync(void *address, void *stream) {
  (void)stream;
  return address ? answer(pool_free(address)) : OK;
}
EXPORT int cudaDeviceGetDefaultMemPool(void **out, int device) {
  *out = default_pool(device);
  return OK;
}
EXPORT int cudaDeviceGetMemPool(void **out, int device) { return cudaDeviceGetDefaultMemPool(out, device); }
EXPORT int cudaMemPoolCreate(void **out, const void *how) {
  pool *p = calloc(1, sizeof *p);
  (void)how;
  if (!p) return answer(OUT_OF_MEMORY);
  p->device = mirage_current();
  *out = p;
  return OK;
}
EXPORT int cudaMemPoolTrimTo(pool *p, size_t keep) {
  enter();
  pool_trim(p, keep);
  leave();
  return OK;
}
EXPORT int cudaMemPoolDestroy(pool *p) { return cudaMemPoolTrimTo(p, 0); }
EXPORT int cudaMemPoolGetAttribute(pool *p, int attribute, uint64_t *out) {
  switch (attribute) {
  case 4: *out = p->threshold; break;
  case 5: *out = p->reserved; break;
  case 6: *out = p->reserved_peak; break;
  case 7: *out = p->used; break;
  case 8: *out = p->used_peak; break;
  default: *(int *)out = 1;
  }
  return OK;
}
EXPORT int cudaMemPoolSetAttribute(pool *p, int attribute, const uint64_t *value) {
  if (attribute == 4) p->threshold = *value;
  if (attribute == 6) p->reserved_peak = p->reserved;
  if (attribute == 8) p->used_peak = p->used;
  return OK;
}

/* ---- copies ---- */
EXPORT int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
  (void)kind;
  if (mirage_capture_forbids()) return answer(CAPTURE_UNSUPPORTED);
  mirage_copy(to, from, size);
  return OK;
}
EXPORT int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  (void)kind, (void)stream;
  mirage_copy(to, from, size);
  return OK;
}
EXPORT int cudaMemcpyPeer(void *to, int a, const void *from, int b, size_t size) {
  (void)a, (void)b;
  mirage_copy(to, from, size);
  return OK;
}
EXPORT int cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t size, void *stream) {
  (void)stream;
  return cudaMemcpyPeer(to, a, from, b, size);
}
EXPORT int cudaMemcpy2D(char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t height, int kind) {
  (void)kind;
  if (mirage_owner(to) >= 0 && mirage_owner(from) >= 0) mirage_forget();
  else
    for (size_t i = 0; i < height; i++) mirage_copy(to + i * to_pitch, from + i * from_pitch, width);
  return OK;
}
EXPORT int cudaMemcpy2DAsync(char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t height,
                             int kind, void *stream) {
  (void)stream;
  return cudaMemcpy2D(to, to_pitch, from, from_pitch, width, height, kind);
}
EXPORT int cudaMemset(void *to, int value, size_t size) {
  char byte = (char)value;
  mirage_fill(to, &byte, 1, size);
  return OK;
}
EXPORT int cudaMemsetAsync(void *to, int value, size_t size, void *stream) {
  (void)stream;
  return cudaMemset(to, value, size);
}
EXPORT int cudaMemcpyFromSymbol(void *to, const void *symbol, size_t size, size_t offset, int kind) {
  (void)symbol, (void)offset, (void)kind;
  memset(to, 0, size);
  return OK;
}
EXPORT int cudaGetSymbolAddress(void **out, const void *symbol) {
  static void *symbols;
  (void)symbol;
  if (!symbols) symbols = (void *)mirage_place(mirage_current(), GRANULE); /* one page for all; nothing is read from it */
  *out = symbols;
  return OK;
}
EXPORT int cudaGetSymbolSize(size_t *out, const void *symbol) {
  (void)symbol;
  *out = 8;
  return OK;
}

/* ---- kernels ---- */
EXPORT void **__cudaRegisterFatBinary(void *code) {
  static void *handle;
  (void)code;
  return &handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
EXPORT void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
EXPORT char __cudaInitModule(void **handle) {
  (void)handle;
  return 1;
}
EXPORT int __cudaGetKernel(void **out, const void *function) {
  *out = (void *)function;
  return OK;
}
EXPORT int cudaGetKernel(void **out, const void *function) { return __cudaGetKernel(out, function); }
EXPORT int cudaGetFuncBySymbol(void **out, const void *function) { return __cudaGetKernel(out, function); }
static __thread struct {
  dim3 grid, block;
  size_t shared;
  void *stream;
} configured;
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  configured.grid = grid;
  configured.block = block;
  configured.shared = shared;
  configured.stream = stream;
  return 0;
}
EXPORT int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void **stream) {
  *grid = configured.grid;
  *block = configured.block;
  *shared = configured.shared;
  *stream = configured.stream;
  return OK;
}
EXPORT int cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) {
  (void)function, (void)grid, (void)block, (void)arguments, (void)shared;
  mirage_launch(stream);
  return OK;
}
EXPORT int __cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared, void *stream) {
  return cudaLaunchKernel(function, grid, block, arguments, shared, stream);
}
EXPORT int cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                                       void *stream) {
  return cudaLaunchKernel(function, grid, block, arguments, shared, stream);
}
typedef struct {
  dim3 grid, block;
  size_t shared;
  void *stream;
} launch_configuration;
EXPORT int cudaLaunchKernelExC(const launch_configuration *how, const void *function, void **arguments) {
  (void)function, (void)arguments;
  mirage_launch(how->stream);
  return OK;
}
EXPORT int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *argument) {
  (void)stream;
  if (function) function(argument);
  return OK;
}
EXPORT int cudaStreamAddCallback(void *stream, void (*function)(void *, int, void *), void *argument, unsigned flags) {
  (void)flags;
  if (function) function(stream, OK, argument);
  return OK;
}
typedef struct {
  size_t shared, constant, local;
  int threads_per_block, registers, ptx_version, binary_version, cache_mode, dynamic_shared, carveout, cluster[5];
} function_attributes;
EXPORT int cudaFuncGetAttributes(function_attributes *out, const void *function) {
  const mirage_gpu *gpu = mirage_device();
  (void)function;
  memset(out, 0, sizeof *out);
  out->threads_per_block = 1024;
  out->registers = 64;
  out->ptx_version = out->binary_version = 10 * gpu->major + gpu->minor;
  out->dynamic_shared = gpu->shared_per_block;
  return OK;
}
/* Registers of a kernel are not known, so they are left out: what threads, blocks and shared memory allow. */
EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *out, const void *function, int threads, size_t shared,
                                                                  unsigned flags) {
  const mirage_gpu *gpu = mirage_device();
  int whole = (threads + 31) / 32 * 32, blocks = whole ? gpu->threads_per_sm / whole : 0;
  int by_shared = (int)((size_t)gpu->shared_per_sm / (shared + (size_t)gpu->shared_reserved));
  (void)function, (void)flags;
  if (blocks > gpu->blocks_per_sm) blocks = gpu->blocks_per_sm;
  *out = blocks < by_shared ? blocks : by_shared;
  if (*out < 1) *out = 1;
  return OK;
}
EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *out, const void *function, int threads, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(out, function, threads, shared, 0);
}
EXPORT int cudaOccupancyMaxActiveClusters(int *out, const void *function, const void *how) {
  (void)function, (void)how;
  *out = mirage_device()->sms / 2;
  return OK;
}
EXPORT int cudaOccupancyMaxPotentialClusterSize(int *out, const void *function, const void *how) {
  (void)function, (void)how;
  *out = 8;
  return OK;
}

/* ---- streams and events ---- */
EXPORT int cudaStreamCreateWithPriority(void **out, unsigned flags, int priority) {
  (void)flags;
  return answer(mirage_stream_new(priority, out));
}
EXPORT int cudaStreamCreateWithFlags(void **out, unsigned flags) { return cudaStreamCreateWithPriority(out, flags, 0); }
EXPORT int cudaStreamCreate(void **out) { return cudaStreamCreateWithPriority(out, 0, 0); }
EXPORT int cudaStreamGetPriority(void *stream, int *out) {
  *out = mirage_stream_priority(stream);
  return OK;
}
EXPORT int cudaStreamGetFlags(void *stream, unsigned *out) {
  (void)stream;
  *out = 1;
  return OK;
}
EXPORT int cudaStreamGetId(void *stream, unsigned long long *out) {
  *out = mirage_stream_id(stream);
  return OK;
}
EXPORT int cudaStreamGetDevice(void *stream, int *out) {
  *out = mirage_stream_device(stream);
  return OK;
}
EXPORT int cudaStreamSynchronize(void *stream) { return answer(mirage_stream_sync(stream)); }
EXPORT int cudaStreamQuery(void *stream) { return answer(mirage_stream_query(stream)); }
EXPORT int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
  (void)flags;
  return answer(mirage_stream_wait(stream, event));
}
EXPORT int cudaEventCreateWithFlags(void **out, unsigned flags) {
  (void)flags;
  return answer(mirage_event_new(out));
}
EXPORT int cudaEventCreate(void **out) { return answer(mirage_event_new(out)); }
EXPORT int cudaEventDestroy(void *event) { return mirage_event_free(event); }
EXPORT int cudaEventRecord(void *event, void *stream) { return answer(mirage_event_record(event, stream)); }
EXPORT int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) {
  (void)flags;
  return cudaEventRecord(event, stream);
}
EXPORT int cudaEventQuery(void *event) { return answer(mirage_event_query(event)); }
EXPORT int cudaEventSynchronize(void *event) { return answer(mirage_event_sync(event)); }
EXPORT int cudaEventElapsedTime(float *out, void *start, void *end) {
  (void)start, (void)end;
  *out = 1.0f;
  return OK;
}
EXPORT int cudaEventElapsedTime_v2(float *out, void *start, void *end) { return cudaEventElapsedTime(out, start, end); }

/* ---- graphs ---- */
EXPORT int cudaThreadExchangeStreamCaptureMode(int *mode) {
  *mode = mirage_capture_mode(*mode);
  return OK;
}
EXPORT int cudaStreamBeginCapture(void *stream, int mode) { return answer(mirage_capture_begin(stream, mode)); }
EXPORT int cudaStreamEndCapture(void *stream, void **graph) { return answer(mirage_capture_end(stream, graph)); }
EXPORT int cudaStreamIsCapturing(void *stream, int *out) {
  *out = mirage_capture_status(stream, NULL, NULL);
  return OK;
}
static int capture_info(void *stream, int *status, uint64_t *id, void **graph, const void ***nodes, size_t *count) {
  static const void *none[1];
  uint64_t number = 0;
  *status = mirage_capture_status(stream, &number, graph);
  if (id) *id = number;
  if (nodes) *nodes = none;
  if (count) *count = 0;
  return OK;
}
EXPORT int cudaStreamGetCaptureInfo_v3(void *stream, int *status, uint64_t *id, void **graph, const void ***nodes,
                                       const void **edges, size_t *count) {
  if (edges) *edges = NULL;
  return capture_info(stream, status, id, graph, nodes, count);
}
EXPORT int cudaStreamGetCaptureInfo_v2(void *stream, int *status, uint64_t *id, void **graph, const void ***nodes,
                                       size_t *count) {
  return capture_info(stream, status, id, graph, nodes, count);
}
#if CUDA_MAJOR < 13
EXPORT int cudaStreamGetCaptureInfo(void *stream, int *status, uint64_t *id) {
  return capture_info(stream, status, id, NULL, NULL, NULL);
}
#else
EXPORT int cudaStreamGetCaptureInfo(void *stream, int *status, uint64_t *id, void **graph, const void ***nodes,
                                    const void **edges, size_t *count) {
  return cudaStreamGetCaptureInfo_v3(stream, status, id, graph, nodes, edges, count);
}
#endif
EXPORT int cudaGraphCreate(void **out, unsigned flags) {
  (void)flags;
  *out = mirage_graph_new();
  return OK;
}
EXPORT int cudaGraphGetNodes(void *graph, void **nodes, size_t *count) {
  size_t have = mirage_graph_nodes(graph);
  if (nodes)
    for (size_t i = 0; i < have && i < *count; i++) nodes[i] = (void *)mirage_handle();
  else *count = have;
  return OK;
}
EXPORT int cudaGraphGetRootNodes(void *graph, void **nodes, size_t *count) {
  (void)graph, (void)nodes;
  *count = 0;
  return OK;
}
EXPORT int cudaGraphInstantiate(void **out, void *graph, unsigned long long flags) {
  (void)flags;
  *out = graph;
  return OK;
}
EXPORT int cudaGraphInstantiateWithFlags(void **out, void *graph, unsigned long long flags) {
  return cudaGraphInstantiate(out, graph, flags);
}
EXPORT int cudaGraphLaunch(void *graph, void *stream) {
  mirage_graph_launch(graph, stream);
  return OK;
}
EXPORT int cudaGraphAddEmptyNode(void **out, void *graph, const void *nodes, size_t count) {
  (void)graph, (void)nodes, (void)count;
  *out = (void *)mirage_handle();
  return OK;
}
EXPORT int cudaGraphNodeGetType(void *node, int *out) {
  (void)node;
  *out = 0;
  return OK;
}
EXPORT int cudaGraphNodeGetDependencies(void *node, void **nodes, void *edges, size_t *count) {
  (void)node, (void)nodes;
#if CUDA_MAJOR < 13
  (void)count;
  *(size_t *)edges = 0;
#else
  (void)edges;
  *count = 0;
#endif
  return OK;
}
EXPORT int cudaUserObjectCreate(void **out) {
  *out = (void *)mirage_handle();
  return OK;
}
EXPORT int cudaDeviceGetGraphMemAttribute(int device, int attribute, uint64_t *out) {
  (void)device, (void)attribute;
  *out = 0;
  return OK;
}

/* ---- processes cannot share memory that does not exist ---- */
EXPORT int cudaIpcGetMemHandle(void *out, void *address) {
  memset(out, 0, 64);
  memcpy(out, &address, sizeof address);
  return OK;
}
EXPORT int cudaIpcOpenMemHandle(void **out) {
  *out = NULL;
  return answer(NOT_SUPPORTED);
}
EXPORT int cudaIpcOpenEventHandle(void **out) {
  *out = NULL;
  return answer(NOT_SUPPORTED);
}

/* ---- the driver behind the runtime ---- */
EXPORT int cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned version, unsigned long long flags,
                                            int *found) {
  (void)version, (void)flags;
  mirage_driver_entry(name, out);
  if (found) *found = 0;
  return OK;
}
EXPORT int cudaGetDriverEntryPoint(const char *name, void **out, unsigned long long flags, int *found) {
  return cudaGetDriverEntryPointByVersion(name, out, 0, flags, found);
}
EXPORT int cudaProfilerStart(void) { return OK; }
EXPORT int cudaProfilerStop(void) { return OK; }
