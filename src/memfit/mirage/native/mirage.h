/* The imaginary GPU: what the null libraries share.
 *
 * Written from the public names and documented behaviour of the CUDA interfaces; no vendor file is used. Device memory is
 * a number: addresses are handed out, nothing lies behind them. Kernels are counted, never run.
 */
#ifndef MEMFIT_MIRAGE_H
#define MEMFIT_MIRAGE_H

#include <stddef.h>
#include <stdint.h>

#define MIB ((size_t)1 << 20)
#define GRANULE (2 * MIB)
#define MAX_DEVICES 16
#define EXPORT __attribute__((visibility("default")))

/* result codes that the runtime and the driver share */
enum {
  OK = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  INVALID_DEVICE = 101,
  INVALID_HANDLE = 400,
  NO_IMAGE = 209,
  NOT_FOUND = 500,
  NOT_READY = 600,
  NOT_SUPPORTED = 801,
  CAPTURE_UNSUPPORTED = 900,
  CAPTURE_INVALIDATED = 901,
};

/* ---- the device, from MEMFIT_MIRAGE_* (settings.py documents them) ---- */
typedef struct {
  char name[256];
  int count, cuda, major, minor, sms, threads_per_sm, blocks_per_sm, registers_per_sm;
  int shared_per_sm, shared_per_block, shared_reserved, l2, bus_bits, memory_khz, clock_khz, integrated;
  size_t total, context;
  long long lag;   /* launches and queries until an event completes; -1: until it is waited for */
  long long order; /* 0 ascending, -1 descending, otherwise the seed of scattered addresses */
  int ones;        /* what unknown single numbers read as */
} mirage_gpu;

const mirage_gpu *mirage_device(void);
int mirage_occupancy(int threads, size_t shared);                /* resident blocks of a kernel on a multiprocessor */

/* ---- accounts: core.c ---- */
enum { DEVICE_MEMORY, VIRTUAL_MEMORY };
int mirage_take(int device, size_t size);                        /* bytes, without an address; 0 or OUT_OF_MEMORY */
void mirage_give(int device, size_t size);                       /* returns what mirage_take took */
uint64_t mirage_place(int device, size_t size);                  /* an address range, without memory; 0: none left */
void mirage_unplace(uint64_t address);                           /* gives an address range back */
int mirage_malloc(int device, size_t size, void **out);          /* both */
int mirage_free(void *address);                                  /* INVALID_VALUE when it is no such address */
int mirage_range(const void *address, uint64_t *start, size_t *size); /* the range an address lies in; 0: found */
int mirage_owner(const void *address);                           /* device of an address, -1 for host memory */
size_t mirage_free_bytes(int device);
int mirage_host_alloc(size_t size, int managed, void **out);     /* pinned or managed memory, on the host */
int mirage_host_free(void *address);
int mirage_host_kind(const void *address, void **start);         /* 0 unknown, 1 pinned, 3 managed (as CUDA numbers them) */
void mirage_host_register(const void *address, size_t size);
void mirage_host_unregister(const void *address);

int mirage_current(void);                                        /* device of the calling thread */
int mirage_select(int device);
int mirage_touched(int device);                                  /* whether anything was done on it */

/* ---- values: core.c. Bytes that went to the device are known until the next kernel. ---- */
void mirage_copy(void *to, const void *from, size_t size);
void mirage_fill(void *to, const void *pattern, size_t width, size_t size);
void mirage_forget(void);

/* ---- work: stream.c ---- */
typedef struct mirage_capture mirage_capture;
typedef struct mirage_stream mirage_stream;
void mirage_launch(void *stream);                                /* one kernel */
void mirage_work(void);                                          /* kernels of a library, on a stream it knows */
int mirage_stream_new(int priority, void **out);
int mirage_stream_priority(void *stream);
int mirage_stream_device(void *stream);
uint64_t mirage_stream_id(void *stream);
int mirage_stream_sync(void *stream);
int mirage_stream_query(void *stream);
int mirage_device_sync(void);
int mirage_stream_wait(void *stream, void *event);
int mirage_event_new(void **out);
int mirage_event_free(void *event);
int mirage_event_record(void *event, void *stream);
int mirage_event_query(void *event);
int mirage_event_sync(void *event);
int mirage_capture_begin(void *stream, int mode);
int mirage_capture_end(void *stream, void **graph);
int mirage_capture_status(void *stream, uint64_t *id, void **graph); /* 0 none, 1 active, 2 invalidated */
int mirage_capture_mode(int mode);                               /* of this thread; returns the one before */
int mirage_capture_forbids(void);                                /* a call that must not happen while capturing */
void *mirage_graph_new(void);
size_t mirage_graph_nodes(void *graph);
void mirage_graph_launch(void *graph, void *stream);

/* ---- log: core.c ---- */
void mirage_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
void mirage_unknown(const char *function);                       /* first call of a function that is not modelled */
uint64_t mirage_handle(void);                                    /* a number that no other handle has */

#endif
