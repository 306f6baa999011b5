/* The loader thread: takes jobs, cuts them into direct reads of a few MiB, keeps a fixed number in
 * flight, checks hashes, retries, and hands each job back the moment its last byte is in, so that a
 * layer can run while the next one is read. Everything in here but the functions marked "engine
 * side" runs on that one thread and needs no lock; what other threads may read is published under
 * `counters_lock`.
 *
 * Order: jobs are begun first in, first out, and a copy is finished before the job behind it
 * begins. A load into memory that a demotion is still copying away is therefore queued safely
 * behind it. */
#include "memtier/loader.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>

/* A block is also short enough that a demand read never waits long behind a prefetch. */
/* Beginning a read into memory that is not populated yet faults it in, inside the system call;
 * after so much of it look at what has ended, or the first layer waits for the faults of all that
 * follow. */
#define RAW_BYTES ((uint64_t)4 << 20)
#define URING_DEPTH 32
#define PREAD_THREADS 8
#define PREFETCH_DEPTH 2
#define COPY_PIECE ((uint64_t)4 << 20)
/* Hashing goes on between reads in pieces, so that the device never waits for a whole segment. */
#define CHECK_PIECE ((uint64_t)2 << 20)
#define RETRIES_MAX 3
#define RETRY_FIRST_NS 10000000u /* then 40 ms, then 160 ms */
#define RATE_BYTES_MIN ((uint64_t)4 << 20)

struct loader {
    struct loader_options opt;
    struct ring *requests, *answers;
    pthread_t thread;
    _Atomic bool stop;
    /* Answers whose wake-up was written too; `answers_seen` is the engine's. The ring alone would
     * not do: its item is visible before its wake-up, and one that comes after the descriptor was
     * cleared would leave it readable for ever. */
    _Atomic uint64_t answers_sent;
    uint64_t answers_seen;
    sem_t started;
    enum err_code start_rc;
    struct err start_err;
    /* The text people see: the second replaces the first if registration fails later on. */
    char texts[2][400];
    _Atomic(const char *) text;
    /* Guards `shown`. */
    struct lock counters_lock;
    struct loader_counters shown;

    /* ---- the loader thread's own ---- */
    struct io *io;
    struct memtier_shape shape;
    bool registering;
    /* The pool as it was at open: slabs that a larger budget adds later stay unregistered. */
    uint64_t pool_bytes;
    uint32_t slabs;
    size_t *registered_bytes;           /* [slabs] */
    uint32_t slabs_max;                 /* slabs at or above are not to be registered any more */
    struct load_job *demand, *prefetch; /* in order */
    struct load_job *retry;             /* waiting for their next attempt */
    struct load_job *checking;          /* read, the head is being hashed */
    XXH3_state_t *hash;
    unsigned inflight, inflight_prefetch;
    struct io_read *reads, *free_reads;
    struct load_files files;
    struct loader_counters counters;
    uint64_t busy_from, busy_bytes;
    bool copying;
    uint64_t raw_bytes; /* begun into unpopulated memory since the last look at the device */
};

/* ---- text ---- */

static void set_text(struct loader *l, int which, const char *fmt, ...) BASE_PRINTF(3, 4);
static void set_text(struct loader *l, int which, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(l->texts[which], sizeof(l->texts[which]), fmt, ap);
    va_end(ap);
    /* release: pairs with loader_text's acquire, which then sees the bytes. */
    atomic_store_explicit(&l->text, l->texts[which], memory_order_release);
}

/* ---- finishing jobs ---- */

static void publish_counters(struct loader *l)
{
    l->counters.cpu_ns = clock_thread_ns();
    lock_take(&l->counters_lock);
    l->shown = l->counters;
    lock_drop(&l->counters_lock);
}

static void answer(struct loader *l, struct load_job *job, enum job_result result)
{
    job->result = result;
    job->done_ns = clock_ns();
    if (result == JOB_DONE && job->kind == JOB_READ) {
        l->counters.loads++;
        l->counters.load_bytes += job->bytes;
        hist_add(&l->counters.hist,
                 job->done_ns > job->submit_ns ? job->done_ns - job->submit_ns : 0);
    }
    publish_counters(l);
    /* Never full: it has a place for every job that may be out. From here on the job is not ours.
     */
    if (!ring_push(l->answers, job))
        abort();
    /* release: pairs with loader_pending's acquire, which then clears a descriptor already written.
     */
    atomic_fetch_add_explicit(&l->answers_sent, 1, memory_order_release);
}

static struct err *describe(const struct load_job *job)
{
    struct err *why = mem_alloc(sizeof(*why));
    if (job->error == EBADMSG) {
        char hex[33];
        hash128_format(job->hash, hex);
        err_set(why, ERR_CORRUPT,
                "%s is damaged: segment %s at byte %" PRIu64 " does not match its checksum (run "
                "verify; remove the expert, gc, and add it again)",
                job->file->path, hex, job->file_offset);
        return why;
    }
    errno = job->error;
    err_set_errno(why, job->error == ENODATA ? ERR_CORRUPT : ERR_IO,
                  "%s %s (segment at byte %" PRIu64 ", %u attempts)", job->file->path,
                  job->error_text, job->file_offset, job->attempts + 1);
    return why;
}

static void fail_or_retry(struct loader *l, struct load_job *job)
{
    if (job->attempts >= RETRIES_MAX) {
        job->why = describe(job);
        answer(l, job, JOB_FAILED);
        return;
    }
    job->due_ns = clock_ns() + ((uint64_t)RETRY_FIRST_NS << (2 * job->attempts));
    job->attempts++;
    job->error = 0;
    job->next_offset = 0;
    job->complete = false;
    job->file->reopen = true; /* it may have been replaced by a good one */
    job->next = l->retry;
    l->retry = job;
    l->counters.retries++;
}

static bool wish(_Atomic bool *flag)
{
    /* relaxed: a hint; the job's fields travel through the rings. */
    return atomic_load_explicit(flag, memory_order_relaxed);
}

static void append(struct load_job **list, struct load_job *job)
{
    while (*list != NULL)
        list = &(*list)->next;
    job->next = NULL;
    *list = job;
}

static void deliver(struct loader *l, struct load_job *job)
{
    if (!job->file->direct && job->file->fd >= 0)
        (void)posix_fadvise(job->file->fd, (off_t)job->file_offset, (off_t)load_padded(job->bytes),
                            POSIX_FADV_DONTNEED);
    answer(l, job, JOB_DONE);
}

/* No read of it is in flight and none will be begun. */
static void settle(struct loader *l, struct load_job *job)
{
    assert(job->inflight == 0 && !job->listed);
    if (job->error == 0 && job->complete && job->check) {
        job->hashed = 0;
        append(&l->checking, job);
        return;
    }
    /* relaxed: a hint to stop early; the pair that ends the thread is its join in loader_close. */
    if (job->error == 0 && job->complete) {
        if (job->kind == JOB_WRITE)
            job->hash = hash128_of(job->dst, (size_t)job->bytes, 0);
        deliver(l, job);
    } else if (job->dropped || atomic_load_explicit(&l->stop, memory_order_relaxed))
        answer(l, job, JOB_CANCELLED);
    else
        fail_or_retry(l, job);
}

/* Hash a piece of the first segment that waits for it. False = none does. */
static bool check_piece(struct loader *l)
{
    struct load_job *job = l->checking;
    if (job == NULL)
        return false;
    if (job->hashed == 0)
        (void)XXH3_128bits_reset(l->hash);
    uint64_t bytes = BASE_MIN(job->bytes - job->hashed, CHECK_PIECE);
    (void)XXH3_128bits_update(l->hash, job->dst + job->hashed, (size_t)bytes);
    job->hashed += bytes;
    if (job->hashed < job->bytes)
        return true;
    l->checking = job->next;
    XXH128_hash_t h = XXH3_128bits_digest(l->hash);
    if (hash128_equal((struct hash128){.lo = h.low64, .hi = h.high64}, job->hash)) {
        deliver(l, job);
    } else {
        job->error = EBADMSG;
        fail_or_retry(l, job);
    }
    return true;
}

/* ---- issuing reads ---- */

static uint32_t chunk_bytes(const struct loader *l, const struct load_job *job, int32_t *ret_buffer)
{
    uint64_t left = load_padded(job->bytes) - job->next_offset;
    uint64_t bytes = BASE_MIN(left, (uint64_t)l->shape.block_bytes);
    *ret_buffer = -1;
    const unsigned char *dst = job->dst + job->next_offset;
    const struct pool *p = l->opt.pool;
    if (!l->registering || dst < p->base || dst >= p->base + l->pool_bytes)
        return (uint32_t)bytes;
    size_t slab = (size_t)(dst - p->base) / POOL_SLAB, in = (size_t)(dst - p->base) % POOL_SLAB;
    if (in < l->registered_bytes[slab]) {
        *ret_buffer = (int32_t)slab;
        bytes = BASE_MIN(bytes, l->registered_bytes[slab] - in);
    }
    return (uint32_t)bytes;
}

static bool is_raw(const struct loader *l, const unsigned char *dst)
{
    const struct pool *p = l->opt.pool;
    if (dst < p->base || dst >= p->base + p->mapped_bytes)
        return false;
    size_t slab = (size_t)(dst - p->base) / POOL_SLAB;
    /* relaxed: only how much to begin at once depends on it. */
    return atomic_load_explicit(&p->slab_state[slab], memory_order_relaxed) != SLAB_POPULATED;
}

static void begin_busy(struct loader *l)
{
    if (l->inflight == 0) {
        l->busy_from = clock_ns();
        l->busy_bytes = 0;
    }
}

static void issue_chunk(struct loader *l, struct load_job *job)
{
    struct io_read *r = l->free_reads;
    l->free_reads = r->next;
    int32_t buffer;
    uint32_t bytes = chunk_bytes(l, job, &buffer);
    *r = (struct io_read){.fd = job->file->fd,
                          .slot = job->file->registered ? job->file->slot : -1,
                          .buffer = buffer,
                          .offset = job->file_offset + job->next_offset,
                          .bytes = bytes,
                          .dst = job->dst + job->next_offset,
                          .write = job->kind == JOB_WRITE,
                          .job = job};
    begin_busy(l);
    l->raw_bytes += is_raw(l, r->dst) ? bytes : 0;
    job->next_offset += bytes;
    job->complete = job->next_offset == load_padded(job->bytes);
    job->inflight++;
    job->file->inflight++;
    l->inflight++;
    l->inflight_prefetch += job->prefetch ? 1 : 0;
    l->io->ops->submit(l->io, r);
}

/* The next chunk of the job, or the reason why there is none in job->error. */
static void issue_read(struct loader *l, struct load_job *job)
{
    const char *text = "cannot be read:";
    int why = load_file_ready(&l->files, job->file, &text);
    if (why == 0 && l->opt.fault != NULL && job->kind == JOB_READ) {
        int32_t buffer;
        why = l->opt.fault(l->opt.fault_ctx, job->file_offset + job->next_offset,
                           chunk_bytes(l, job, &buffer));
        text = "cannot be read:";
    }
    if (why != 0) {
        job->error = why;
        job->error_text = text;
        return;
    }
    issue_chunk(l, job);
}

static void copy_piece(struct loader *l, struct load_job *job)
{
    uint64_t t0 = clock_ns(), bytes = BASE_MIN(job->bytes - job->next_offset, COPY_PIECE);
    memcpy(job->dst + job->next_offset, job->src + job->next_offset, (size_t)bytes);
    job->next_offset += bytes;
    l->counters.copy_ns += clock_ns() - t0;
    l->counters.copy_bytes += bytes;
    if (job->next_offset == job->bytes)
        l->counters.copies++;
}

static void forget_slabs(struct loader *l, uint32_t from)
{
    for (uint32_t i = from; i < l->slabs; i++) {
        if (l->registering && l->registered_bytes[i] > 0)
            (void)l->io->ops->attach_buffer(l->io, i, NULL, 0);
        l->registered_bytes[i] = 0;
    }
    l->slabs_max = BASE_MIN(l->slabs_max, from);
}

static void pop_head(struct load_job **list)
{
    struct load_job *job = *list;
    *list = job->next;
    job->next = NULL;
    job->listed = false;
}

/* Do a bounded piece of the head of a list. False = nothing more to do there now. */
static bool step_list(struct loader *l, struct load_job **list)
{
    struct load_job *job = *list;
    if (job == NULL)
        return false;
    if (job->kind == JOB_FORGET) {
        if (l->inflight > 0)
            return false; /* reads that name the buffers may not have reached the kernel yet */
        pop_head(list);
        forget_slabs(l, job->slab);
        answer(l, job, JOB_DONE);
        return true;
    }
    if (job->kind == JOB_COPY) {
        copy_piece(l, job);
        l->copying = true;
        if (job->next_offset == job->bytes) {
            pop_head(list);
            answer(l, job, JOB_DONE);
        }
        return false; /* look at the device between two pieces */
    }
    /* Looked at once and remembered: the wish may be taken back while reads are in flight. */
    job->dropped = wish(&job->cancel);
    if (job->error == 0 && !job->dropped)
        issue_read(l, job);
    if (job->error != 0 || job->complete || job->dropped) {
        pop_head(list);
        if (job->inflight == 0)
            settle(l, job);
    }
    return true;
}

static bool may_begin(const struct loader *l)
{
    return l->inflight < l->shape.depth && l->raw_bytes < RAW_BYTES;
}

static void issue(struct loader *l)
{
    l->copying = false;
    l->raw_bytes = 0;
    while (may_begin(l) && l->demand != NULL && step_list(l, &l->demand))
        ;
    while (may_begin(l) && l->demand == NULL && l->inflight_prefetch < PREFETCH_DEPTH &&
           l->prefetch != NULL && step_list(l, &l->prefetch))
        ;
}

/* ---- completions ---- */

static void end_read(struct loader *l, struct io_read *r)
{
    struct load_job *job = r->job;
    job->inflight--;
    job->file->inflight--;
    l->inflight--;
    l->inflight_prefetch -= job->prefetch ? 1 : 0;
    r->next = l->free_reads;
    l->free_reads = r;
    if (l->inflight == 0) {
        uint64_t ns = clock_ns() - l->busy_from;
        l->counters.busy_ns += ns;
        if (l->busy_bytes >= RATE_BYTES_MIN && ns > 0) {
            double rate = (double)l->busy_bytes * 1e9 / (double)ns;
            l->counters.rate = l->counters.rate > 0 ? 0.7 * l->counters.rate + 0.3 * rate : rate;
        }
    }
}

/* True if the read goes on (a short or interrupted one) and stays in flight. */
static bool go_on(struct loader *l, struct io_read *r)
{
    if (r->result == -EINTR || r->result == -EAGAIN) {
        l->io->ops->submit(l->io, r);
        return true;
    }
    if (r->result <= 0 || (uint32_t)r->result >= r->bytes || r->result % MEMTIER_ALIGN != 0)
        return false;
    r->offset += (uint32_t)r->result;
    r->dst += r->result;
    r->bytes -= (uint32_t)r->result;
    l->io->ops->submit(l->io, r);
    return true;
}

static void note_result(struct load_job *job, const struct io_read *r)
{
    if (r->result == (int32_t)r->bytes || job->error != 0)
        return;
    job->error_text = "cannot be read:";
    if (r->result >= 0) {
        job->error = ENODATA;
        job->error_text = "ends too early:";
        return;
    }
    job->error = -r->result;
    if (job->error == EINVAL && job->file->direct)
        job->file->direct_refused = true; /* the retry opens it buffered */
}

static void complete(struct loader *l, struct io_read *done)
{
    while (done != NULL) {
        struct io_read *r = done;
        done = r->next;
        if (r->result > 0 && !r->write)
            l->busy_bytes += (uint32_t)r->result;
        if (go_on(l, r))
            continue;
        struct load_job *job = r->job;
        note_result(job, r);
        end_read(l, r);
        if (job->inflight == 0 && !job->listed)
            settle(l, job);
    }
}

/* ---- taking jobs in ---- */

static void take_requests(struct loader *l)
{
    ring_drain_fd(l->requests);
    struct load_job **demand_end = &l->demand;
    while (*demand_end != NULL)
        demand_end = &(*demand_end)->next;
    for (struct load_job *job = ring_pop(l->requests); job != NULL; job = ring_pop(l->requests)) {
        job->listed = true;
        job->next = NULL;
        if (job->prefetch) {
            append(&l->prefetch, job);
        } else {
            *demand_end = job;
            demand_end = &job->next;
        }
    }
}

/* A prefetch somebody now waits for joins the demand reads. */
static void take_urgent(struct loader *l)
{
    for (struct load_job **at = &l->prefetch; *at != NULL;) {
        struct load_job *job = *at;
        if (!wish(&job->urgent) || job->inflight > 0) {
            at = &job->next;
            continue;
        }
        *at = job->next;
        job->prefetch = false;
        append(&l->demand, job); /* stays listed */
    }
}

static void take_due(struct loader *l, uint64_t now)
{
    for (struct load_job **at = &l->retry; *at != NULL;) {
        struct load_job *job = *at;
        if (job->due_ns > now && !wish(&job->cancel)) {
            at = &job->next;
            continue;
        }
        *at = job->next;
        struct load_job **list = job->prefetch ? &l->prefetch : &l->demand;
        job->listed = true;
        job->next = *list;
        *list = job;
    }
}

/* Until the next retry is due; UINT64_MAX = none. */
static uint64_t due_in(const struct loader *l, uint64_t now)
{
    uint64_t ns = UINT64_MAX;
    for (const struct load_job *job = l->retry; job != NULL; job = job->next)
        ns = BASE_MIN(ns, job->due_ns > now ? job->due_ns - now : 0);
    return ns;
}

/* ---- registered slabs ---- */

static void registration_failed(struct loader *l, uint32_t slab, int why)
{
    struct rlimit lim = {0};
    char limit[32];
    (void)getrlimit(RLIMIT_MEMLOCK, &lim);
    l->registering = false;
    for (uint32_t i = 0; i < l->slabs; i++) {
        if (l->registered_bytes[i] > 0)
            (void)l->io->ops->attach_buffer(l->io, i, NULL, 0);
        l->registered_bytes[i] = 0;
    }
    if (why == ENOMEM)
        set_text(l, 1,
                 "io_uring (%s, plain buffers: RLIMIT_MEMLOCK of %s was reached at slab %u; cure: "
                 "LimitMEMLOCK=infinity or ulimit -l unlimited)",
                 l->files.direct ? "direct" : "buffered",
                 size_format(lim.rlim_cur, limit, sizeof(limit)), slab);
    else
        set_text(l, 1, "io_uring (%s, plain buffers: registering memory failed: %s)",
                 l->files.direct ? "direct" : "buffered", strerror(why));
}

/* One slab at a time, between reads: pinning a slab that is populated takes a millisecond or so. */
static bool register_one(struct loader *l)
{
    const struct pool *p = l->opt.pool;
    for (uint32_t i = 0; l->registering && i < l->slabs_max; i++) {
        /* acquire: pairs with the populating thread's release store. */
        if (l->registered_bytes[i] != 0 ||
            atomic_load_explicit(&p->slab_state[i], memory_order_acquire) != SLAB_POPULATED)
            continue;
        size_t from = (size_t)i * POOL_SLAB, bytes = BASE_MIN(POOL_SLAB, l->pool_bytes - from);
        int why = l->io->ops->attach_buffer(l->io, i, p->base + from, bytes);
        if (why != 0)
            registration_failed(l, i, why);
        else
            l->registered_bytes[i] = bytes;
        return true;
    }
    return false;
}

/* ---- starting ---- */

static bool may_lock_memory(uint64_t bytes)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct caps[2] = {{0}};
    if (syscall(SYS_capget, &head, caps) == 0 && (caps[0].effective >> CAP_IPC_LOCK & 1) != 0)
        return true;
    struct rlimit lim;
    return getrlimit(RLIMIT_MEMLOCK, &lim) != 0 || lim.rlim_cur == RLIM_INFINITY ||
           lim.rlim_cur >= bytes;
}

/* A real read of a real file: what opcode lists and version numbers promise is not always allowed.
 */
static int probe_read(struct loader *l, bool direct)
{
    int fd = open(l->opt.probe_path, O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
    if (fd < 0)
        return errno;
    unsigned char *page = aligned_alloc(MEMTIER_ALIGN, MEMTIER_ALIGN);
    struct io_read r = {.fd = fd, .slot = -1, .buffer = -1, .bytes = MEMTIER_ALIGN, .dst = page};
    struct io_read *done = NULL;
    int why = page == NULL ? ENOMEM : 0;
    if (why == 0) {
        l->io->ops->submit(l->io, &r);
        /* The wake descriptor may end a wait early. A device that hangs hangs every loader. */
        while (done == NULL) {
            done = l->io->ops->wait(l->io, UINT64_MAX);
            ring_drain_fd(l->requests);
        }
        why = done->result == MEMTIER_ALIGN ? 0 : done->result < 0 ? -done->result : EIO;
    }
    free(page);
    close(fd);
    return why;
}

static enum err_code try_uring(struct loader *l, struct err *e)
{
    struct io_options opt = {.wake_fd = ring_fd(l->requests),
                             .depth = URING_DEPTH,
                             .files = LOAD_FILES_MAX,
                             .buffers = l->slabs};
    bool lockable = may_lock_memory(l->pool_bytes);
    if (!lockable)
        opt.buffers = 0;
    enum err_code rc = io_open_uring(&opt, &l->io, e);
    if (rc != ERR_OK)
        return rc;
    int why = probe_read(l, true);
    l->files.direct = why == 0;
    if (why == EINVAL)
        why = probe_read(l, false);
    if (why != 0) {
        l->io->ops->close(l->io);
        l->io = NULL;
        errno = why;
        return err_set_errno(e, ERR_UNSUPPORTED, "io_uring cannot read %s", l->opt.probe_path);
    }
    l->registering = l->io->ops->attach_buffer != NULL;
    const char *how = l->files.direct ? "direct" : "buffered: the file system refuses direct reads";
    char limit[32];
    struct rlimit lim = {0};
    (void)getrlimit(RLIMIT_MEMLOCK, &lim);
    if (lockable)
        set_text(l, 0, "io_uring (%s, %s)", how,
                 l->registering ? "registered buffers" : "plain buffers: the kernel has no table");
    else
        set_text(l, 0,
                 "io_uring (%s, plain buffers: RLIMIT_MEMLOCK is %s, less than the pool; cure: "
                 "LimitMEMLOCK=infinity or ulimit -l unlimited)",
                 how, size_format(lim.rlim_cur, limit, sizeof(limit)));
    return ERR_OK;
}

static enum err_code try_pread(struct loader *l, bool direct, const char *because, struct err *e)
{
    struct io_options opt = {.wake_fd = ring_fd(l->requests), .depth = PREAD_THREADS};
    l->registering = false; /* io_uring may have been tried before */
    enum err_code rc = io_open_pread(&opt, &l->io, e);
    if (rc != ERR_OK)
        return rc;
    int why = direct ? probe_read(l, true) : 0;
    l->files.direct = direct && why == 0;
    if (why == EINVAL || !direct)
        why = probe_read(l, false);
    if (why != 0) {
        l->io->ops->close(l->io);
        l->io = NULL;
        errno = why;
        return err_set_errno(e, ERR_IO, "cannot read %s", l->opt.probe_path);
    }
    const char *mode = l->files.direct ? "direct"
                       : direct        ? "buffered: the file system refuses direct reads"
                                       : "buffered";
    set_text(l, 0, "%u preads (%s%s%s)", l->io->depth, mode, because[0] != '\0' ? "; " : "",
             because);
    return ERR_OK;
}

static enum err_code choose(struct loader *l, struct err *e)
{
    struct err why = {0};
    if (l->opt.kind == MEMTIER_LOADER_PREAD || l->opt.kind == MEMTIER_LOADER_BUFFERED)
        return try_pread(l, l->opt.kind == MEMTIER_LOADER_PREAD, "", e);
    if (try_uring(l, &why) == ERR_OK) {
        /* Buffered reads through io_uring are handed to kernel threads anyway: no better than ours.
         */
        if (l->files.direct || l->opt.kind == MEMTIER_LOADER_URING)
            return ERR_OK;
        l->io->ops->close(l->io);
        l->io = NULL;
        return try_pread(l, true, "", e);
    }
    if (l->opt.kind == MEMTIER_LOADER_URING)
        return err_set_param(e, ERR_UNSUPPORTED, "tiers.loader",
                             "the io_uring loader was asked for, but %s: use auto or pread",
                             why.msg);
    why.msg[200] = '\0'; /* the reason is kept in the text, which is short */
    return try_pread(l, true, why.msg, e);
}

/* Measured or not, what is used shows in the text. */
static void choose_shape(struct loader *l)
{
    double rate = 0;
    char block[32], text[128];
    l->shape = (struct memtier_shape){IO_BLOCK_DEFAULT, BASE_MIN(l->io->depth, 8u)};
    if (l->opt.measure_path != NULL)
        rate = load_measure_shape(l->io, l->opt.measure_path, l->files.direct, &l->shape);
    snprintf(text, sizeof(text), "; %u x %s", l->shape.depth,
             size_format(l->shape.block_bytes, block, sizeof(block)));
    size_t at = strlen(l->texts[0]);
    snprintf(l->texts[0] + at, sizeof(l->texts[0]) - at, "%s%s", text,
             rate > 0 ? "" : " unmeasured");
    if (rate > 0)
        snprintf(l->texts[0] + at + strlen(text), sizeof(l->texts[0]) - at - strlen(text),
                 ", measured %.2f GB/s", rate * 1e-9);
}

static void init_reads(struct loader *l)
{
    l->reads = mem_array(l->io->depth, sizeof(*l->reads));
    for (unsigned i = 0; i < l->io->depth; i++) {
        l->reads[i].next = l->free_reads;
        l->free_reads = &l->reads[i];
    }
}

/* ---- the thread ---- */

static void run(struct loader *l)
{
    /* acquire: pairs with loader_close's release. */
    while (!atomic_load_explicit(&l->stop, memory_order_acquire)) {
        take_requests(l);
        take_urgent(l);
        take_due(l, clock_ns());
        issue(l);
        bool more = check_piece(l) || l->copying || l->raw_bytes >= RAW_BYTES || register_one(l);
        /* Only now: issuing may itself have sent a job to wait for its next attempt. */
        complete(l, l->io->ops->wait(l->io, more ? 0 : due_in(l, clock_ns())));
    }
    /* The memory of reads in flight is the caller's until they end. */
    while (l->inflight > 0) {
        for (struct io_read *r = l->io->ops->wait(l->io, UINT64_MAX); r != NULL;) {
            struct io_read *next = r->next;
            end_read(l, r);
            r = next;
        }
        ring_drain_fd(l->requests);
    }
}

static void *loader_run(void *arg)
{
    struct loader *l = arg;
    l->start_rc = choose(l, &l->start_err);
    if (l->start_rc == ERR_OK) {
        choose_shape(l);
        init_reads(l);
        l->files.io = l->io;
        l->hash = XXH3_createState();
        if (l->hash == NULL)
            abort(); /* as base/ does: no memory at start */
    }
    enum err_code rc = l->start_rc;
    sem_post(&l->started);
    if (rc != ERR_OK)
        return NULL;
    run(l);
    load_files_close(&l->files);
    l->io->ops->close(l->io);
    free(l->reads);
    (void)XXH3_freeState(l->hash);
    return NULL;
}

/* ---- engine side ---- */

static void loader_free(struct loader *l)
{
    /* Answers that nobody took may carry a reason. */
    for (struct load_job *job = NULL; l->answers != NULL && (job = ring_pop(l->answers)) != NULL;)
        free(job->why);
    ring_close(&l->requests);
    ring_close(&l->answers);
    sem_destroy(&l->started);
    lock_done(&l->counters_lock);
    free(l->registered_bytes);
    free(l);
}

enum err_code loader_open(const struct loader_options *opt, struct loader **ret, struct err *e)
{
    struct loader *l = mem_alloc(sizeof(*l));
    l->opt = *opt;
    l->pool_bytes = opt->pool->usable_bytes;
    l->slabs = l->slabs_max = (uint32_t)((l->pool_bytes + POOL_SLAB - 1) / POOL_SLAB);
    l->registered_bytes = mem_array(l->slabs, sizeof(*l->registered_bytes));
    /* Ranks: stats takes the residency's lock first, then this one. */
    lock_init(&l->counters_lock, LOCK_RANK_STORE, "loader counters");
    sem_init(&l->started, 0, 0);
    enum err_code rc = ring_open(&l->requests, opt->jobs_max, e);
    if (rc == ERR_OK)
        rc = ring_open(&l->answers, opt->jobs_max, e);
    if (rc == ERR_OK)
        rc = thread_start(&l->thread, "mem-loader", loader_run, l, e);
    if (rc != ERR_OK) {
        loader_free(l);
        return rc;
    }
    while (sem_wait(&l->started) != 0)
        ; /* EINTR */
    if (l->start_rc != ERR_OK) {
        thread_join(l->thread);
        rc = l->start_rc;
        if (e != NULL)
            *e = l->start_err;
        loader_free(l);
        return rc;
    }
    *ret = l;
    return ERR_OK;
}

void loader_close(struct loader **lp)
{
    struct loader *l = *lp;
    if (l == NULL)
        return;
    atomic_store_explicit(&l->stop, true, memory_order_release); /* pairs with run's acquire */
    ring_wake(l->requests);
    thread_join(l->thread);
    loader_free(l);
    *lp = NULL;
}

const char *loader_text(const struct loader *l)
{
    return atomic_load_explicit(&l->text, memory_order_acquire); /* pairs with set_text */
}

struct ring *loader_wake_ring(struct loader *l)
{
    return l->requests;
}

void loader_submit(struct loader *l, struct load_job *job)
{
    job->next = NULL;
    job->listed = job->complete = job->dropped = false;
    job->next_offset = job->due_ns = 0;
    job->inflight = job->attempts = 0;
    job->error = 0;
    job->error_text = "";
    job->why = NULL;
    if (!ring_push(l->requests, job))
        abort();
}

void loader_wake(struct loader *l)
{
    ring_wake(l->requests);
}

bool loader_pending(struct loader *l)
{
    /* acquire: pairs with the loader thread's release after it has pushed an answer. */
    uint64_t sent = atomic_load_explicit(&l->answers_sent, memory_order_acquire);
    if (sent == l->answers_seen && ring_count(l->answers) == 0)
        return false;
    l->answers_seen = sent;
    ring_drain_fd(l->answers);
    return true;
}

struct load_job *loader_next(struct loader *l)
{
    return ring_pop(l->answers);
}

int loader_fd(const struct loader *l)
{
    return ring_fd(l->answers);
}

double loader_rate(const struct loader *l)
{
    struct loader *mutable = (struct loader *)l;
    lock_take(&mutable->counters_lock);
    double rate = l->shown.rate;
    lock_drop(&mutable->counters_lock);
    return rate;
}

void loader_read_counters(const struct loader *l, struct loader_counters *ret)
{
    struct loader *mutable = (struct loader *)l; /* the lock is not part of what const promises */
    lock_take(&mutable->counters_lock);
    *ret = l->shown;
    lock_drop(&mutable->counters_lock);
}
