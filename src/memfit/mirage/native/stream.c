/* Streams, events with a lag, and graph capture. Work is a count of kernels: the GPU's clock. */
#include "mirage.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { LEGACY = 1, PER_THREAD = 2, CAPTURE_ACTIVE = 1, CAPTURE_BROKEN = 2, MODE_RELAXED = 2 };

struct mirage_stream {
  mirage_stream *next;
  uint64_t id;
  int device, priority;
  uint64_t waited; /* events up to this number are known to be over */
  mirage_capture *capture;
};
struct mirage_capture {
  uint64_t id;
  mirage_stream *origin;
  int status, mode;
  void *graph;
};
typedef struct {
  uint64_t id, tick, number;
  mirage_stream *stream;
  mirage_capture *capture;
  uint64_t capture_id;
} event;
typedef struct {
  size_t nodes;
} graph;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static mirage_stream defaults[MAX_DEVICES][2];
static mirage_stream *streams;
static uint64_t ticks, events, waited[MAX_DEVICES], stream_ids = 16, capture_ids;
static int captures;
static __thread int thread_mode; /* 0 global, 1 this thread, 2 relaxed */
void mirage_count_launch(void);

/* Streams are never given back: events may still point to them. */
static mirage_stream *resolve(void *handle) {
  uint64_t number = (uint64_t)handle;
  if (number > PER_THREAD) return handle;
  mirage_stream *stream = &defaults[mirage_current()][number == PER_THREAD];
  stream->device = mirage_current();
  stream->id = number == PER_THREAD ? PER_THREAD : LEGACY;
  return stream;
}
static void tick(void) { __atomic_fetch_add(&ticks, 1, __ATOMIC_RELAXED); }

EXPORT void mirage_launch(void *handle) {
  mirage_stream *stream;
  mirage_forget();
  mirage_count_launch();
  tick();
  if (!__atomic_load_n(&captures, __ATOMIC_RELAXED)) return;
  stream = resolve(handle);
  if (stream->capture) ((graph *)stream->capture->graph)->nodes++;
}
EXPORT void mirage_work(void) {
  mirage_forget();
  mirage_count_launch();
  tick();
  if (!__atomic_load_n(&captures, __ATOMIC_RELAXED)) return;
  pthread_mutex_lock(&lock);
  for (mirage_stream *s = streams; s; s = s->next)
    if (s->capture && s->capture->origin == s) ((graph *)s->capture->graph)->nodes++;
  pthread_mutex_unlock(&lock);
}

EXPORT int mirage_stream_new(int priority, void **out) {
  mirage_stream *stream = calloc(1, sizeof *stream);
  if (!stream) return OUT_OF_MEMORY;
  stream->device = mirage_current();
  stream->priority = priority;
  pthread_mutex_lock(&lock);
  stream->id = ++stream_ids;
  stream->next = streams;
  streams = stream;
  pthread_mutex_unlock(&lock);
  *out = stream;
  return OK;
}
EXPORT int mirage_stream_priority(void *handle) { return resolve(handle)->priority; }
EXPORT int mirage_stream_device(void *handle) { return resolve(handle)->device; }
EXPORT uint64_t mirage_stream_id(void *handle) { return resolve(handle)->id; }

/* ---- what has been waited for is over; the rest is over `lag` ticks later ---- */
static int over(const event *e) {
  long long lag = mirage_device()->lag;
  if (!e->number || e->number <= e->stream->waited || e->number <= waited[e->stream->device]) return 1;
  return lag >= 0 && __atomic_load_n(&ticks, __ATOMIC_RELAXED) - e->tick >= (uint64_t)lag;
}
static int broken(mirage_stream *stream) { /* a call that a capturing stream does not allow */
  if (!stream->capture) return 0;
  stream->capture->status = CAPTURE_BROKEN;
  return 1;
}
EXPORT int mirage_stream_sync(void *handle) {
  mirage_stream *stream = resolve(handle);
  if (broken(stream)) return CAPTURE_UNSUPPORTED;
  stream->waited = events;
  return OK;
}
EXPORT int mirage_stream_query(void *handle) {
  mirage_stream *stream = resolve(handle);
  if (broken(stream)) return CAPTURE_UNSUPPORTED;
  tick();
  return OK;
}
EXPORT int mirage_device_sync(void) {
  if (mirage_capture_forbids()) return CAPTURE_UNSUPPORTED;
  waited[mirage_current()] = events;
  return OK;
}
EXPORT int mirage_event_new(void **out) {
  event *e = calloc(1, sizeof *e);
  if (!e) return OUT_OF_MEMORY;
  e->id = mirage_handle();
  *out = e;
  return OK;
}
EXPORT int mirage_event_free(void *handle) {
  free(handle);
  return OK;
}
EXPORT int mirage_event_record(void *handle, void *stream_handle) {
  event *e = handle;
  mirage_stream *stream = resolve(stream_handle);
  e->stream = stream;
  e->capture = stream->capture;
  e->capture_id = stream->capture ? stream->capture->id : 0;
  if (stream->capture) {
    e->number = 0;
    return OK;
  }
  e->tick = __atomic_load_n(&ticks, __ATOMIC_RELAXED);
  e->number = __atomic_add_fetch(&events, 1, __ATOMIC_RELAXED);
  return OK;
}
EXPORT int mirage_event_query(void *handle) {
  event *e = handle;
  if (e->capture_id) return CAPTURE_UNSUPPORTED;
  if (over(e)) return OK;
  tick();
  return NOT_READY;
}
EXPORT int mirage_event_sync(void *handle) {
  event *e = handle;
  if (e->capture_id) return CAPTURE_UNSUPPORTED;
  if (e->number && e->number > e->stream->waited) e->stream->waited = e->number;
  return OK;
}
/* Waiting for an event of a captured stream makes the waiting stream part of the capture. */
EXPORT int mirage_stream_wait(void *stream_handle, void *event_handle) {
  mirage_stream *stream = resolve(stream_handle);
  event *e = event_handle;
  if (!e->capture_id || stream->capture || (uint64_t)stream_handle <= PER_THREAD) return OK;
  pthread_mutex_lock(&lock);
  for (mirage_stream *s = streams; s; s = s->next)
    if (s->capture && s->capture->id == e->capture_id) {
      stream->capture = s->capture;
      break;
    }
  pthread_mutex_unlock(&lock);
  return OK;
}

/* ---- capture ---- */
EXPORT void *mirage_graph_new(void) { return calloc(1, sizeof(graph)); }
EXPORT size_t mirage_graph_nodes(void *handle) { return handle ? ((graph *)handle)->nodes : 0; }
EXPORT void mirage_graph_launch(void *handle, void *stream) {
  for (size_t i = 0; i < mirage_graph_nodes(handle); i++) tick();
  mirage_launch(stream);
}
EXPORT int mirage_capture_begin(void *handle, int mode) {
  mirage_stream *stream = resolve(handle);
  if ((uint64_t)handle <= LEGACY) return CAPTURE_UNSUPPORTED;
  if (stream->capture) return INVALID_VALUE;
  mirage_capture *capture = calloc(1, sizeof *capture);
  if (!capture || !(capture->graph = mirage_graph_new())) return OUT_OF_MEMORY;
  pthread_mutex_lock(&lock);
  capture->id = ++capture_ids;
  capture->origin = stream;
  capture->mode = mode;
  capture->status = CAPTURE_ACTIVE;
  stream->capture = capture;
  captures++;
  pthread_mutex_unlock(&lock);
  return OK;
}
EXPORT int mirage_capture_end(void *handle, void **out) {
  mirage_stream *stream = resolve(handle);
  mirage_capture *capture = stream->capture;
  int result;
  if (out) *out = NULL;
  if (!capture || capture->origin != stream) return INVALID_VALUE;
  result = capture->status == CAPTURE_BROKEN ? CAPTURE_INVALIDATED : OK;
  pthread_mutex_lock(&lock);
  for (mirage_stream *s = streams; s; s = s->next)
    if (s->capture == capture) s->capture = NULL;
  captures--;
  pthread_mutex_unlock(&lock);
  if (!result && out) *out = capture->graph;
  free(capture);
  return result;
}
EXPORT int mirage_capture_status(void *handle, uint64_t *id, void **out) {
  mirage_stream *stream = resolve(handle);
  if (!stream->capture) return 0;
  if (id) *id = stream->capture->id;
  if (out) *out = stream->capture->graph;
  return stream->capture->status;
}
EXPORT int mirage_capture_mode(int mode) {
  int before = thread_mode;
  thread_mode = mode;
  return before;
}
EXPORT int mirage_capture_forbids(void) {
  int found = 0;
  if (!__atomic_load_n(&captures, __ATOMIC_RELAXED) || thread_mode == MODE_RELAXED) return 0;
  pthread_mutex_lock(&lock);
  for (mirage_stream *s = streams; s; s = s->next)
    if (s->capture && s->capture->mode != MODE_RELAXED) {
      s->capture->status = CAPTURE_BROKEN;
      found = 1;
    }
  pthread_mutex_unlock(&lock);
  return found;
}
