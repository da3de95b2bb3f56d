/* libcudart: streams, events and graphs. */
#define _GNU_SOURCE
#include "cudart.h"
#include <stddef.h>

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
