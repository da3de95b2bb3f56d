/* libcudart: the code that programs bring, and its launches. */
#define _GNU_SOURCE
#include "cudart.h"
#include <stdlib.h>
#include <string.h>

/* ---- kernels ---- */
/* A program registers its code at start: a wrapper that points to a container with one image per architecture. Only the
 * headers of the images are looked at, for which architecture each is. */
#define WRAPPER_MAGIC 0x466243b1u
#define CONTAINER_MAGIC 0xba55ed50u
#define MAX_IMAGES 64
typedef struct {
  uint32_t magic, version;
  const char *data;
} wrapper;
typedef struct {
  uint32_t magic;
  uint16_t version, header;
  uint64_t size;
} container;
typedef struct {
  uint16_t kind, version; /* 1: PTX, 2: machine code */
  uint32_t header;
  uint64_t size;
  uint32_t unused[3], architecture;
} image;
typedef struct {
  int known, best; /* best: architecture that the device would run, 0 for none */
} module;

/* Machine code runs on its own major version from its minor version on; PTX on everything newer. */
static void choose(module *m, const wrapper *code) {
  const mirage_gpu *gpu = mirage_device();
  uint32_t wanted = (uint32_t)(10 * gpu->major + gpu->minor), best = 0, best_ptx = 0;
  const container *box;
  const char *at, *end;
  if (!code || code->magic != WRAPPER_MAGIC) return;
  box = (const container *)code->data;
  if (!box || box->magic != CONTAINER_MAGIC) return;
  at = code->data + box->header;
  end = at + box->size;
  for (int i = 0; i < MAX_IMAGES && at + sizeof(image) <= end; i++) {
    const image *one = (const image *)at;
    if (one->header < sizeof(image)) break;
    if (one->kind == 2 && one->architecture / 10 == wanted / 10 && one->architecture <= wanted && one->architecture > best)
      best = one->architecture;
    if (one->kind == 1 && one->architecture <= wanted && one->architecture > best_ptx) best_ptx = one->architecture;
    at += one->header + one->size;
  }
  m->known = 1;
  m->best = (int)(best ? best : best_ptx);
}
EXPORT void **__cudaRegisterFatBinary(const wrapper *code) {
  module *m = calloc(1, sizeof *m);
  if (m) choose(m, code);
  return (void **)m;
}
EXPORT void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
EXPORT void __cudaUnregisterFatBinary(void **handle) { (void)handle; } /* the process ends */
EXPORT char __cudaInitModule(void **handle) {
  (void)handle;
  return 1;
}

/* host function -> module: open addressing, grown at half full */
static struct {
  const void *function;
  const module *of;
} *functions;
static size_t function_count, function_room;
static int function_lock;
static size_t slot_of(const void *function) {
  size_t i = ((uintptr_t)function >> 4) * 0x9E3779B97F4A7C15ull >> 20 & (function_room - 1);
  while (functions[i].function && functions[i].function != function) i = (i + 1) & (function_room - 1);
  return i;
}
static void grow(void) {
  size_t room = function_room;
  void *before = functions;
  __typeof__(functions) old = functions;
  if (2 * function_count < function_room) return;
  function_room = room ? 2 * room : 1 << 16;
  functions = calloc(function_room, sizeof *functions);
  if (!functions) abort();
  for (size_t i = 0; i < room; i++)
    if (old[i].function) functions[slot_of(old[i].function)] = old[i];
  free(before);
}
EXPORT void __cudaRegisterFunction(void **handle, const char *function) {
  while (__atomic_test_and_set(&function_lock, __ATOMIC_ACQUIRE)) {}
  grow();
  size_t i = slot_of(function);
  if (!functions[i].function) function_count++;
  functions[i].function = function;
  functions[i].of = (const module *)handle;
  __atomic_clear(&function_lock, __ATOMIC_RELEASE);
}
/* Architecture of the code that a function runs with; 0 when the device has none for it. */
static int architecture(const void *function) {
  const mirage_gpu *gpu = mirage_device();
  const module *m = NULL;
  while (__atomic_test_and_set(&function_lock, __ATOMIC_ACQUIRE)) {}
  if (functions) m = functions[slot_of(function)].of;
  __atomic_clear(&function_lock, __ATOMIC_RELEASE);
  return m && m->known ? m->best : 10 * gpu->major + gpu->minor;
}
static int launch(const void *function, void *stream) {
  if (!architecture(function)) return answer(NO_IMAGE);
  mirage_launch(stream);
  return OK;
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
  (void)grid, (void)block, (void)arguments, (void)shared;
  return launch(function, stream);
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
  (void)arguments;
  return launch(function, how->stream);
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
  int runs = architecture(function);
  memset(out, 0, sizeof *out);
  if (!runs) return answer(NO_IMAGE);
  out->threads_per_block = 1024;
  out->registers = 64;
  out->ptx_version = out->binary_version = runs;
  out->dynamic_shared = gpu->shared_per_block;
  return OK;
}
EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *out, const void *function, int threads, size_t shared,
                                                                  unsigned flags) {
  (void)function, (void)flags;
  *out = mirage_occupancy(threads, shared);
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
