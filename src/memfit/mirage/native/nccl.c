/* libnccl: communicators that know their rank and size; collectives move nothing. Every rank is taken to hold what
 * this one holds, so known values survive a broadcast and a gather. */
#include "mirage.h"
#include <stdlib.h>
#include <string.h>

typedef struct {
  int ranks, rank, device;
} communicator;
typedef struct {
  char bytes[128];
} unique_id;

static int new_communicator(communicator **out, int ranks, int rank) {
  communicator *made = calloc(1, sizeof *made);
  if (!made) return 2;
  *made = (communicator){ranks, rank, mirage_current()};
  *out = made;
  mirage_log("communicator ranks=%d rank=%d\n", ranks, rank);
  return OK;
}
EXPORT int ncclGetVersion(int *out) {
  *out = NCCL_VERSION;
  return OK;
}
EXPORT const char *ncclGetErrorString(int error) { return error ? "error of the imaginary NCCL" : "no error"; }
EXPORT const char *ncclGetLastError(void *comm) {
  (void)comm;
  return "";
}
EXPORT int ncclGetUniqueId(unique_id *out) {
  uint64_t number = mirage_handle();
  memset(out, 0, sizeof *out);
  memcpy(out, &number, sizeof number);
  return OK;
}
EXPORT int ncclCommInitRank(communicator **out, int ranks, unique_id id, int rank) {
  (void)id;
  return new_communicator(out, ranks, rank);
}
EXPORT int ncclCommInitRankConfig(communicator **out, int ranks, unique_id id, int rank, void *how) {
  (void)id, (void)how;
  return new_communicator(out, ranks, rank);
}
EXPORT int ncclCommInitRankScalable(communicator **out, int ranks, int rank, int ids, void *id, void *how) {
  (void)ids, (void)id, (void)how;
  return new_communicator(out, ranks, rank);
}
EXPORT int ncclCommInitAll(communicator **out, int count, const int *devices) {
  for (int i = 0; i < count; i++) {
    if (new_communicator(&out[i], count, i)) return 2;
    out[i]->device = devices ? devices[i] : i;
  }
  return OK;
}
/* How many ranks share a colour is not known here: those of the parent. */
EXPORT int ncclCommSplit(communicator *comm, int colour, int key, communicator **out, void *how) {
  (void)how;
  if (colour < 0) {
    *out = NULL;
    return OK;
  }
  return new_communicator(out, comm->ranks, key);
}
EXPORT int ncclCommShrink(communicator *comm, int *excluded, int count, communicator **out, void *how, int flags) {
  (void)excluded, (void)how, (void)flags;
  return new_communicator(out, comm->ranks - count, comm->rank);
}
EXPORT int ncclCommCount(const communicator *comm, int *out) {
  *out = comm->ranks;
  return OK;
}
EXPORT int ncclCommUserRank(const communicator *comm, int *out) {
  *out = comm->rank;
  return OK;
}
EXPORT int ncclCommCuDevice(const communicator *comm, int *out) {
  *out = comm->device;
  return OK;
}
EXPORT int ncclCommGetAsyncError(communicator *comm, int *out) {
  (void)comm;
  *out = OK;
  return OK;
}
EXPORT int ncclCommDestroy(communicator *comm) {
  (void)comm; /* kept: torch asks aborted communicators for their state */
  return OK;
}
EXPORT int ncclCommAbort(communicator *comm) { return ncclCommDestroy(comm); }
EXPORT int ncclMemAlloc(void **out, size_t size) { return mirage_malloc(mirage_current(), size, out) ? 1 : OK; }
EXPORT int ncclMemFree(void *at) { return mirage_free(at) ? 1 : OK; }
EXPORT int ncclCommRegister(communicator *comm, void *at, size_t size, void **out) {
  (void)comm, (void)at, (void)size;
  *out = (void *)mirage_handle();
  return OK;
}
EXPORT int ncclCommWindowRegister(communicator *comm, void *at, size_t size, void **out, int flags) {
  (void)flags;
  return ncclCommRegister(comm, at, size, out);
}
EXPORT int ncclRedOpCreatePreMulSum(int *out, void *scalar, int type, int where, communicator *comm) {
  (void)scalar, (void)type, (void)where, (void)comm;
  *out = 5;
  return OK;
}

/* ---- collectives; types: 0-1 one byte, 2-3 and 7 four, 4-5 and 8 eight, 6 and 9 two, then float8 ---- */
static size_t width(int type) {
  static const unsigned char bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  return type >= 0 && type < (int)sizeof bytes ? bytes[type] : 1;
}
static void keep(void *to, const void *from, size_t size, int copies) {
  if (to != from)
    for (int i = 0; i < copies; i++) mirage_copy((char *)to + (size_t)i * size, from, size);
}
EXPORT int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, communicator *comm, void *stream) {
  (void)stream;
  if (root == comm->rank || comm->rank == 0) keep(to, from, count * width(type), 1);
  return OK;
}
EXPORT int ncclBcast(void *at, size_t count, int type, int root, communicator *comm, void *stream) {
  (void)at, (void)count, (void)type, (void)root, (void)comm, (void)stream;
  return OK;
}
EXPORT int ncclAllGather(const void *from, void *to, size_t count, int type, communicator *comm, void *stream) {
  (void)stream;
  /* known small values only; in place, the own part lies inside of the output */
  if (count * width(type) * (size_t)comm->ranks <= 64 << 10) keep(to, from, count * width(type), comm->ranks);
  return OK;
}
EXPORT int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, communicator *comm, void *stream) {
  (void)from, (void)to, (void)count, (void)type, (void)op;
  if (comm->ranks > 1) mirage_launch(stream);
  else keep(to, from, count * width(type), 1);
  return OK;
}
EXPORT int ncclReduce(const void *from, void *to, size_t count, int type, int op, int root, communicator *comm, void *stream) {
  (void)root;
  return ncclAllReduce(from, to, count, type, op, comm, stream);
}
EXPORT int ncclReduceScatter(const void *from, void *to, size_t count, int type, int op, communicator *comm, void *stream) {
  return ncclAllReduce(from, to, count, type, op, comm, stream);
}
