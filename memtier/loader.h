/* Private to memtier/: the loader thread and its two ways to read.
 *
 * The engine hands a `struct load_job` over through a ring and gets it back through another;
 * between the two the job belongs to the loader, except for the two atomic wishes. Jobs are *begun*
 * in the order they came in (copies are finished in that order too), which is what lets a demotion
 * and the load that overwrites its source be queued one behind the other. */
#ifndef SWITCHYARD_MEMTIER_LOADER_H
#define SWITCHYARD_MEMTIER_LOADER_H

#include <stdatomic.h>

#include "memtier/memtier.h"
#include "memtier/pool.h"

/* ==== io: reads in flight. Loader thread only. ==== */

struct io_read {
    struct io_read *next;
    int fd;
    int32_t slot;   /* registered file, -1 = none */
    int32_t buffer; /* registered buffer that contains dst, -1 = none */
    uint64_t offset;
    uint32_t bytes;
    unsigned char *dst;
    int32_t result; /* bytes, or -errno */
    struct load_job *job;
    bool write; /* of dst, which is not changed */
};

struct io;
struct io_ops {
    void (*close)(struct io *io);
    void (*submit)(struct io *io, struct io_read *r); /* at most `depth` at once; does not block */
    /* Begin what was submitted, then wait until a read ends, the wake descriptor is readable or the
     * time is up (UINT64_MAX = for ever). The ended reads, linked by `next`, NULL = none. */
    struct io_read *(*wait)(struct io *io, uint64_t timeout_ns);
    /* Registration; 0 or an errno. fd -1 and NULL take it back. NULL members: not supported. */
    int (*attach_file)(struct io *io, uint32_t slot, int fd);
    int (*attach_buffer)(struct io *io, uint32_t idx, void *addr, size_t bytes);
};
struct io {
    const struct io_ops *ops;
    unsigned depth;
};
struct io_options {
    int wake_fd;
    unsigned depth;
    uint32_t files, buffers; /* sizes of the registration tables, 0 = none */
};
#define IO_BLOCK_DEFAULT ((uint32_t)1 << 20)
enum err_code io_open_uring(const struct io_options *opt, struct io **ret,
                            struct err *e) BASE_NODISCARD;
enum err_code io_open_pread(const struct io_options *opt, struct io **ret,
                            struct err *e) BASE_NODISCARD;

/* ==== the loader ==== */

struct load_file {
    char *path; /* immutable, as is `bytes`: what the index says it must have */
    uint64_t bytes;
    /* The rest is the loader's. */
    int fd; /* -1 = not open */
    int32_t slot;
    uint32_t inflight;
    uint64_t used_at;
    bool reopen, registered, direct, direct_refused;
    bool writable; /* immutable */
};

#define LOAD_FILES_MAX 256
struct load_files {
    struct io *io;
    bool direct; /* open with O_DIRECT unless a file refuses it */
    struct load_file *open[LOAD_FILES_MAX];
    uint64_t ticks; /* of use */
};
/* Open, long enough and registered; else an errno and what to say before it. */
int load_file_ready(struct load_files *t, struct load_file *f, const char **ret_text);
/* Times a few block sizes and depths by reading parts of the file, each twice, alternating; for
 * about 0.1 s. Keeps *shape unless another is clearly better. Bytes per second of the best, 0 = not
 * measured (the file is too small). No other read may be in flight. */
double load_measure_shape(struct io *io, const char *path, bool direct,
                          struct memtier_shape *shape);
void load_files_close(struct load_files *t); /* no read may be in flight */

enum job_kind {
    JOB_READ,   /* file -> dst */
    JOB_WRITE,  /* dst -> file; leaves the hash of what was written in `hash` */
    JOB_COPY,   /* src -> dst */
    JOB_FORGET, /* unregister every slab of the hbm pool at or above `slab`, for good */
};
enum job_result { JOB_DONE, JOB_CANCELLED, JOB_FAILED };

struct load_job {
    /* Set before submit. */
    enum job_kind kind;
    void *owner;
    struct load_file *file;
    uint64_t file_offset, bytes;
    unsigned char *dst;
    const unsigned char *src;
    uint32_t slab;
    struct hash128 hash;
    bool check;    /* compare the hash */
    bool prefetch; /* reads only while no demand read waits */
    uint64_t submit_ns;
    /* Wishes of the engine while the job is out. A cancelled job may still come back done. */
    _Atomic bool cancel, urgent;
    /* The answer. */
    enum job_result result;
    uint64_t done_ns;
    struct err *why; /* JOB_FAILED: malloc'd, the receiver frees */
    /* The loader's. */
    struct load_job *next;
    bool listed, complete, dropped;
    uint64_t next_offset, hashed, due_ns;
    uint32_t inflight, attempts;
    int error;
    const char *error_text;
};

/* What is really read: the store pads segments so that direct reads end on a block. */
static inline uint64_t load_padded(uint64_t bytes)
{
    return (bytes + MEMTIER_ALIGN - 1) / MEMTIER_ALIGN * MEMTIER_ALIGN;
}

struct loader_counters {
    uint64_t loads, load_bytes; /* from files */
    uint64_t copies, copy_bytes, copy_ns;
    uint64_t busy_ns; /* at least one read in flight */
    uint64_t cpu_ns;  /* of the loader thread */
    uint64_t retries;
    double rate; /* bytes/s while busy, recent; 0 = nothing measured yet */
    struct hist hist;
};

struct loader_options {
    enum memtier_loader kind;
    struct pool *pool;      /* whose slabs are registered */
    const char *probe_path; /* an existing file of at least MEMTIER_ALIGN bytes in the store */
    const char
        *measure_path; /* time block sizes and depths on this file; NULL = take the default */
    size_t jobs_max;   /* out at once */
    int (*fault)(void *ctx, uint64_t file_offset, size_t bytes);
    void *fault_ctx;
};
struct loader;
enum err_code loader_open(const struct loader_options *opt, struct loader **ret,
                          struct err *e) BASE_NODISCARD;
void loader_close(struct loader **l); /* cancels what is out; those jobs are not handed back */
const char *loader_text(const struct loader *l);
struct ring *loader_wake_ring(struct loader *l);
/* Engine side. `submit` with at most jobs_max out cannot fail. `next` gives a finished job or NULL.
 */
void loader_submit(struct loader *l, struct load_job *job);
void loader_wake(struct loader *l); /* after setting a wish */
/* False, without a system call, while nothing was answered since the last call; true clears the
 * descriptor: take everything with loader_next then. */
bool loader_pending(struct loader *l);
struct load_job *loader_next(struct loader *l);
int loader_fd(const struct loader *l);
double loader_rate(const struct loader *l); /* bytes/s, 0 = not measured yet; any thread */
void loader_read_counters(const struct loader *l, struct loader_counters *ret); /* any thread */

#endif
