/* libcuda: the driver. Numbers of attributes and results are those of the public interface. */
#define _GNU_SOURCE
#include "mirage.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t address;

/* ---- devices ---- */
EXPORT int mirage_attribute(int *out, int attribute, int device) {
  const mirage_gpu *gpu = mirage_device();
  if (device < 0 || device >= gpu->count) return INVALID_DEVICE;
  switch (attribute) {
  case 1: case 2: case 3: *out = 1024; break;                /* threads per block, block x, y */
  case 4: *out = 64; break;                                  /* block z */
  case 5: *out = 0x7fffffff; break;                          /* grid x */
  case 6: case 7: *out = 65535; break;                       /* grid y, z */
  case 8: *out = 48 << 10; break;                            /* shared memory per block without opting in */
  case 9: *out = 64 << 10; break;                            /* constant memory */
  case 10: *out = 32; break;                                 /* warp */
  case 11: *out = 0x7fffffff; break;                         /* pitch */
  case 12: case 82: *out = gpu->registers_per_sm; break;     /* registers per block, per multiprocessor */
  case 13: *out = gpu->clock_khz; break;
  case 14: case 30: *out = 512; break;                       /* texture, surface alignment */
  case 16: *out = gpu->sms; break;
  case 17: *out = 0; break;                                  /* kernel timeout */
  case 18: *out = gpu->integrated; break;
  case 20: *out = 0; break;                                  /* compute mode: default */
  case 32: *out = 0; break;                                  /* ECC */
  case 33: *out = device + 1; break;                         /* PCI bus */
  case 34: case 50: *out = 0; break;                         /* PCI device, domain */
  case 35: *out = 0; break;                                  /* TCC */
  case 36: *out = gpu->memory_khz; break;
  case 37: *out = gpu->bus_bits; break;
  case 38: *out = gpu->l2; break;
  case 39: *out = gpu->threads_per_sm; break;
  case 40: *out = 3; break;                                  /* copy engines */
  case 75: *out = gpu->major; break;
  case 76: *out = gpu->minor; break;
  case 81: *out = gpu->shared_per_sm; break;
  case 84: case 85: *out = 0; break;                         /* board with several GPUs */
  case 86: case 88: case 100: case 101: *out = 0; break;     /* host atomics, pageable access */
  case 97: *out = gpu->shared_per_block; break;
  case 103: *out = 1; break;                                 /* handles that are file descriptors */
  case 104: case 105: *out = 0; break;                       /* Windows handles */
  case 106: *out = gpu->blocks_per_sm; break;
  case 108: case 109: *out = gpu->l2 / 2; break;
  case 111: *out = gpu->shared_reserved; break;
  case 120: *out = gpu->major >= 9; break;                   /* clusters */
  case 127: *out = gpu->major >= 9; break;                   /* tensor maps */
  case 128: *out = 0; break;                                 /* fabric handles */
  case 130: *out = 0; break;                                 /* NUMA node of the device */
  case 131: case 134: *out = -1; break;
  case 132: *out = 0; break;                                 /* multicast */
  default: *out = 1;
  }
  return OK;
}
EXPORT int cuInit(unsigned flags) {
  (void)flags;
  return mirage_device()->count ? OK : 100;
}
EXPORT int cuDriverGetVersion(int *out) {
  *out = mirage_device()->cuda;
  return OK;
}
EXPORT int cuDeviceGetCount(int *out) {
  *out = mirage_device()->count;
  return OK;
}
EXPORT int cuDeviceGet(int *out, int ordinal) {
  *out = ordinal;
  return ordinal >= 0 && ordinal < mirage_device()->count ? OK : INVALID_DEVICE;
}
EXPORT int cuDeviceGetName(char *out, int size, int device) {
  (void)device;
  snprintf(out, (size_t)size, "%s", mirage_device()->name);
  return OK;
}
EXPORT int cuDeviceTotalMem_v2(size_t *out, int device) {
  (void)device;
  *out = mirage_device()->total;
  return OK;
}
EXPORT int cuDeviceGetAttribute(int *out, int attribute, int device) { return mirage_attribute(out, attribute, device); }
EXPORT int cuDeviceGetUuid(char *out, int device) {
  memcpy(out, "memfit imaginar", 15);
  out[15] = (char)('0' + device);
  return OK;
}
EXPORT int cuDeviceGetUuid_v2(char *out, int device) { return cuDeviceGetUuid(out, device); }
EXPORT int cuDeviceGetPCIBusId(char *out, int size, int device) {
  snprintf(out, (size_t)size, "0000:%02X:00.0", device + 1);
  return OK;
}
EXPORT int cuDeviceGetP2PAttribute(int *out, int attribute, int a, int b) {
  (void)attribute;
  *out = a != b;
  return OK;
}
EXPORT int cuDeviceCanAccessPeer(int *out, int a, int b) {
  *out = a != b;
  return OK;
}

/* ---- contexts: one per device, numbered from 1 ---- */
EXPORT int cuDevicePrimaryCtxRetain(void **out, int device) {
  *out = (void *)(uintptr_t)(device + 1);
  return OK;
}
EXPORT int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  *flags = 0;
  *active = mirage_touched(device);
  return OK;
}
EXPORT int cuCtxGetCurrent(void **out) {
  *out = (void *)(uintptr_t)(mirage_current() + 1);
  return OK;
}
EXPORT int cuCtxSetCurrent(void *context) { return context ? mirage_select((int)(uintptr_t)context - 1) : OK; }
EXPORT int cuCtxPushCurrent_v2(void *context) { return cuCtxSetCurrent(context); }
EXPORT int cuCtxPopCurrent_v2(void **out) { return out ? cuCtxGetCurrent(out) : OK; }
EXPORT int cuCtxGetDevice(int *out) {
  *out = mirage_current();
  return OK;
}
EXPORT int cuCtxGetApiVersion(void *context, unsigned *out) {
  (void)context;
  *out = 3020;
  return OK;
}
EXPORT int cuCtxGetLimit(size_t *out, int limit) {
  *out = limit == 0 ? 1024 : 8 << 20;
  return OK;
}
EXPORT int cuCtxGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return OK;
}
EXPORT int cuCtxSynchronize(void) { return mirage_device_sync(); }
EXPORT int cuStreamGetCtx(void *stream, void **out) {
  *out = (void *)(uintptr_t)(mirage_stream_device(stream) + 1);
  return OK;
}

/* ---- modules and kernels (Triton, NVRTC): a function is a handle, launching it is counted ---- */
EXPORT int cuModuleLoadData(void **out, const void *image) {
  (void)image;
  *out = (void *)mirage_handle();
  return OK;
}
EXPORT int cuModuleLoadDataEx(void **out, const void *image, unsigned count, void *options, void *values) {
  (void)count, (void)options, (void)values;
  return cuModuleLoadData(out, image);
}
EXPORT int cuModuleLoadFatBinary(void **out, const void *image) { return cuModuleLoadData(out, image); }
EXPORT int cuModuleLoad(void **out, const char *path) { return cuModuleLoadData(out, path); }
EXPORT int cuModuleGetFunction(void **out, void *module, const char *name) {
  (void)module, (void)name;
  *out = (void *)mirage_handle();
  return OK;
}
EXPORT int cuModuleGetGlobal_v2(address *out, size_t *size, void *module, const char *name) {
  (void)module, (void)name;
  if (out) *out = mirage_place(mirage_current(), GRANULE);
  if (size) *size = GRANULE;
  return OK;
}
EXPORT int cuLibraryLoadData(void **out, const void *image) { return cuModuleLoadData(out, image); }
EXPORT int cuLibraryLoadFromFile(void **out, const char *path) { return cuModuleLoadData(out, path); }
EXPORT int cuLibraryGetKernel(void **out, void *library, const char *name) { return cuModuleGetFunction(out, library, name); }
EXPORT int cuLibraryGetModule(void **out, void *library) {
  *out = library;
  return OK;
}
EXPORT int cuKernelGetFunction(void **out, void *kernel) {
  *out = kernel;
  return OK;
}
EXPORT int cuFuncGetAttribute(int *out, int attribute, void *function) {
  const mirage_gpu *gpu = mirage_device();
  (void)function;
  switch (attribute) {
  case 0: *out = 1024; break;                                 /* threads per block */
  case 4: *out = 32; break;                                   /* registers */
  case 5: case 6: *out = 10 * gpu->major + gpu->minor; break; /* PTX and binary version */
  case 8: *out = gpu->shared_per_block; break;                /* dynamic shared memory */
  default: *out = 0;                                          /* static shared, constant, local memory: spills */
  }
  return OK;
}
EXPORT int cuKernelGetAttribute(int *out, int attribute, void *kernel, int device) {
  (void)device;
  return cuFuncGetAttribute(out, attribute, kernel);
}
EXPORT int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void *stream, void **arguments, void **extra) {
  (void)function, (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared, (void)arguments, (void)extra;
  mirage_launch(stream);
  return OK;
}
EXPORT int cuLaunchCooperativeKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                     unsigned bz, unsigned shared, void *stream, void **arguments) {
  return cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, arguments, NULL);
}
typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream;
} launch_configuration;
EXPORT int cuLaunchKernelEx(const launch_configuration *how, void *function, void **arguments, void **extra) {
  (void)function, (void)arguments, (void)extra;
  mirage_launch(how->stream);
  return OK;
}
EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *out, void *function, int threads, size_t shared) {
  (void)function;
  *out = mirage_occupancy(threads, shared);
  return OK;
}
EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *out, void *function, int threads, size_t shared,
                                                                unsigned flags) {
  (void)flags;
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(out, function, threads, shared);
}
EXPORT int cuOccupancyMaxActiveClusters(int *out, void *function, const void *how) {
  (void)function, (void)how;
  *out = mirage_device()->sms / 2;
  return OK;
}
EXPORT int cuOccupancyMaxPotentialBlockSize(int *grid, int *block) {
  *grid = mirage_device()->sms * 2;
  *block = 1024;
  return OK;
}
EXPORT int cuLinkCreate_v2(unsigned count, void *options, void *values, void **out) {
  (void)count, (void)options, (void)values;
  *out = (void *)mirage_handle();
  return OK;
}
EXPORT int cuLinkComplete(void *state, void **out, size_t *size) {
  static char image[64];
  (void)state;
  if (out) *out = image;
  if (size) *size = sizeof image;
  return OK;
}

/* ---- memory ---- */
EXPORT int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  if (total) *total = mirage_device()->total;
  if (free_bytes) *free_bytes = mirage_free_bytes(mirage_current());
  return OK;
}
EXPORT int cuMemAlloc_v2(address *out, size_t size) {
  void *at;
  int result = mirage_malloc(mirage_current(), size, &at);
  *out = (address)at;
  return result;
}
EXPORT int cuMemFree_v2(address at) { return mirage_free((void *)at); }
EXPORT int cuMemAllocHost_v2(void **out, size_t size) { return mirage_host_alloc(size, 0, out); }
EXPORT int cuMemHostAlloc(void **out, size_t size, unsigned flags) {
  (void)flags;
  return mirage_host_alloc(size, 0, out);
}
EXPORT int cuMemFreeHost(void *at) { return mirage_host_free(at); }
EXPORT int cuMemAllocManaged(address *out, size_t size, unsigned flags) {
  void *at;
  int result = mirage_host_alloc(size, 1, &at);
  (void)flags;
  *out = (address)at;
  return result;
}
EXPORT int cuMemHostRegister_v2(void *at, size_t size, unsigned flags) {
  (void)flags;
  mirage_host_register(at, size);
  return OK;
}
EXPORT int cuMemHostUnregister(void *at) {
  mirage_host_unregister(at);
  return OK;
}
EXPORT int cuMemHostGetDevicePointer_v2(address *out, void *at, unsigned flags) {
  (void)flags;
  *out = (address)at;
  return OK;
}
EXPORT int cuMemGetAddressRange_v2(address *start, size_t *size, address at) {
  return mirage_range((void *)at, start, size);
}
EXPORT int cuPointerGetAttribute(void *out, int attribute, address at) {
  int device = mirage_owner((void *)at);
  uint64_t start = at;
  size_t size = 0;
  if (device < 0 && !mirage_host_kind((void *)at, NULL)) return INVALID_VALUE;
  mirage_range((void *)at, &start, &size);
  switch (attribute) {
  case 1: *(void **)out = (void *)(uintptr_t)(device + 1); break; /* context */
  case 2: *(unsigned *)out = device < 0 ? 1 : 2; break;           /* host or device memory */
  case 3: case 4: *(address *)out = at; break;                    /* device, host pointer */
  case 8: *(unsigned *)out = 0; break;                            /* managed */
  case 9: *(int *)out = device < 0 ? 0 : device; break;           /* ordinal */
  case 10: *(int *)out = 0; break;                                /* legacy IPC */
  case 11: *(address *)out = start; break;                        /* start and size of the range */
  case 12: *(size_t *)out = size; break;
  default: *(int *)out = 0;
  }
  return OK;
}
EXPORT int cuMemcpyHtoD_v2(address to, const void *from, size_t size) {
  mirage_copy((void *)to, from, size);
  return OK;
}
EXPORT int cuMemcpyDtoH_v2(void *to, address from, size_t size) {
  mirage_copy(to, (void *)from, size);
  return OK;
}
EXPORT int cuMemcpyDtoD_v2(address to, address from, size_t size) {
  mirage_copy((void *)to, (void *)from, size);
  return OK;
}
EXPORT int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t size) { return cuMemcpyHtoD_v2(to, from, size); }
EXPORT int cuMemcpyDtoHAsync_v2(void *to, address from, size_t size) { return cuMemcpyDtoH_v2(to, from, size); }
EXPORT int cuMemcpyDtoDAsync_v2(address to, address from, size_t size) { return cuMemcpyDtoD_v2(to, from, size); }
EXPORT int cuMemcpyAsync(address to, address from, size_t size) { return cuMemcpyDtoD_v2(to, from, size); }
EXPORT int cuMemsetD8_v2(address to, unsigned char value, size_t count) {
  mirage_fill((void *)to, &value, 1, count);
  return OK;
}
EXPORT int cuMemsetD8Async(address to, unsigned char value, size_t count) { return cuMemsetD8_v2(to, value, count); }
EXPORT int cuMemsetD32_v2(address to, unsigned value, size_t count) {
  mirage_fill((void *)to, &value, 4, 4 * count);
  return OK;
}
EXPORT int cuMemsetD32Async(address to, unsigned value, size_t count) { return cuMemsetD32_v2(to, value, count); }

/* ---- virtual memory: ranges, pages of memory, and mappings between them (expandable segments) ---- */
typedef struct physical {
  struct physical *next;
  size_t size;
  int device, references;
} physical;
typedef struct mapping {
  struct mapping *next;
  address at;
  size_t size;
  physical *memory;
} mapping;
static mapping *mappings;
static int mapping_lock;
static void enter(void) {
  while (__atomic_test_and_set(&mapping_lock, __ATOMIC_ACQUIRE)) {}
}
static void leave(void) { __atomic_clear(&mapping_lock, __ATOMIC_RELEASE); }
static void drop(physical *memory) {
  if (--memory->references) return;
  mirage_log("unmap device=%d bytes=%zu\n", memory->device, memory->size);
  mirage_give(memory->device, memory->size);
  free(memory);
}
typedef struct {
  int type, handle_types;
  struct {
    int type, id;
  } location;
} allocation_properties;

EXPORT int cuMemAddressReserve(address *out, size_t size, size_t alignment, address hint, unsigned long long flags) {
  (void)alignment, (void)hint, (void)flags;
  *out = mirage_place(mirage_current(), size);
  return *out ? OK : OUT_OF_MEMORY;
}
EXPORT int cuMemAddressFree(address at, size_t size) {
  (void)size;
  mirage_unplace(at);
  return OK;
}
EXPORT int cuMemGetAllocationGranularity(size_t *out, const void *how, int option) {
  (void)how, (void)option;
  *out = GRANULE;
  return OK;
}
EXPORT int cuMemCreate(physical **out, size_t size, const allocation_properties *how, unsigned long long flags) {
  int device = how && how->location.type == 1 ? how->location.id : mirage_current(), result;
  physical *memory = calloc(1, sizeof *memory);
  (void)flags;
  if (!memory || device < 0 || device >= mirage_device()->count) return free(memory), INVALID_VALUE;
  if (size < MIB) size = GRANULE;
  if ((result = mirage_take(device, size))) return free(memory), result;
  *memory = (physical){NULL, size, device, 1};
  mirage_log("map device=%d bytes=%zu\n", device, size);
  *out = memory;
  return OK;
}
EXPORT int cuMemRelease(physical *memory) {
  enter();
  drop(memory);
  leave();
  return OK;
}
EXPORT int cuMemMap(address at, size_t size, size_t offset, physical *memory, unsigned long long flags) {
  mapping *m = malloc(sizeof *m);
  (void)offset, (void)flags;
  if (!m) return OUT_OF_MEMORY;
  enter();
  *m = (mapping){mappings, at, size, memory};
  mappings = m;
  memory->references++;
  leave();
  return OK;
}
EXPORT int cuMemUnmap(address at, size_t size) {
  enter();
  for (mapping **link = &mappings; *link;) {
    mapping *m = *link;
    if (m->at >= at && m->at + m->size <= at + size) {
      *link = m->next;
      drop(m->memory);
      free(m);
    } else {
      link = &m->next;
    }
  }
  leave();
  return OK;
}
EXPORT int cuMemSetAccess(address at, size_t size, const void *how, size_t count) {
  (void)at, (void)size, (void)how, (void)count;
  return OK;
}
EXPORT int cuMemExportToShareableHandle(void *out, physical *memory, int type, unsigned long long flags) {
  (void)out, (void)memory, (void)type, (void)flags;
  return NOT_SUPPORTED;
}
EXPORT int cuMemImportFromShareableHandle(physical **out, void *handle, int type) {
  (void)out, (void)handle, (void)type;
  return NOT_SUPPORTED;
}
EXPORT int cuMemRetainAllocationHandle(physical **out, address at) {
  int result = INVALID_VALUE;
  enter();
  for (mapping *m = mappings; m; m = m->next)
    if (at >= m->at && at < m->at + m->size) {
      m->memory->references++;
      *out = m->memory;
      result = OK;
      break;
    }
  leave();
  return result;
}

/* ---- streams and events ---- */
EXPORT int cuStreamCreate(void **out, unsigned flags) {
  (void)flags;
  return mirage_stream_new(0, out);
}
EXPORT int cuStreamCreateWithPriority(void **out, unsigned flags, int priority) {
  (void)flags;
  return mirage_stream_new(priority, out);
}
EXPORT int cuStreamSynchronize(void *stream) { return mirage_stream_sync(stream); }
EXPORT int cuStreamQuery(void *stream) { return mirage_stream_query(stream); }
EXPORT int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
  (void)flags;
  return mirage_stream_wait(stream, event);
}
EXPORT int cuStreamIsCapturing(void *stream, int *out) {
  *out = mirage_capture_status(stream, NULL, NULL);
  return OK;
}
EXPORT int cuStreamGetCaptureInfo_v2(void *stream, int *status, uint64_t *id, void **graph, const void ***nodes,
                                     size_t *count) {
  *status = mirage_capture_status(stream, id, graph);
  if (nodes) *nodes = NULL;
  if (count) *count = 0;
  return OK;
}
EXPORT int cuEventCreate(void **out, unsigned flags) {
  (void)flags;
  return mirage_event_new(out);
}
EXPORT int cuEventDestroy_v2(void *event) { return mirage_event_free(event); }
EXPORT int cuEventRecord(void *event, void *stream) { return mirage_event_record(event, stream); }
EXPORT int cuEventQuery(void *event) { return mirage_event_query(event); }
EXPORT int cuEventSynchronize(void *event) { return mirage_event_sync(event); }
EXPORT int cuEventElapsedTime(float *out, void *start, void *end) {
  (void)start, (void)end;
  *out = 1.0f;
  return OK;
}

/* ---- errors ---- */
EXPORT int cuGetErrorString(int error, const char **out) {
  *out = error == OK ? "no error" : error == OUT_OF_MEMORY ? "out of memory" : "error of the imaginary GPU";
  return OK;
}
EXPORT int cuGetErrorName(int error, const char **out) {
  *out = error == OK ? "CUDA_SUCCESS" : error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_UNKNOWN";
  return OK;
}

/* ---- look-up by name: the newest version of a function that is known here, else one that does nothing ---- */
static int nothing(void) { return OK; }
EXPORT int mirage_driver_entry(const char *name, void **out) {
  static const char *const endings[] = {"_v3", "_v2", ""};
  static void *self;
  Dl_info info;
  if (!self && dladdr((void *)cuInit, &info)) self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  *out = NULL;
  for (size_t i = 0; i < sizeof endings / sizeof *endings && self; i++) {
    char versioned[256];
    snprintf(versioned, sizeof versioned, "%s%s", name, endings[i]);
    if ((*out = dlsym(self, versioned))) return OK;
  }
  mirage_unknown(name);
  *out = (void *)nothing;
  return OK;
}
EXPORT int cuGetProcAddress_v2(const char *name, void **out, int version, uint64_t flags, int *found) {
  (void)version, (void)flags;
  mirage_driver_entry(name, out);
  if (found) *found = 0;
  return OK;
}
EXPORT int cuGetProcAddress(const char *name, void **out, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, out, version, flags, NULL);
}
