/* libcudart: errors, devices and their properties. CUDA_MAJOR says whose layouts and argument lists are meant. */
#define _GNU_SOURCE
#include "cudart.h"
#include <stdio.h>
#include <string.h>

/* ---- errors: the last one of a thread is kept until asked for ---- */
static __thread int last_error;
int mirage_answer(int error) {
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
    {NO_IMAGE, "cudaErrorNoKernelImageForDevice", "no kernel image is available for execution on the device"},
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
