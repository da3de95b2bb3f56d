/* libcudart: memory, pools and copies. */
#define _GNU_SOURCE
#include "cudart.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
