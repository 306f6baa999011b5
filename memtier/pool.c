/* The mapping under a pool: address space for the largest budget it may ever get, of which the
 * budget is readable. Pages are faulted in slab by slab by a thread of its own, from both ends
 * (segments are placed from the bottom, KV pages from the top), because a first touch costs more
 * than a read from the disk; nobody waits for it: what is used before its slab is ready is faulted
 * in by its first use. */
#include "memtier/pool.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif
#define HUGE_PAGE ((size_t)2 << 20)
/* The first loads come at once: hurry so far, then leave half of the time to others. */
#define POPULATE_HURRY ((size_t)512 << 20)
/* Populating holds the address-space lock for reading; short pieces let others map memory. */
#define POPULATE_PIECE ((size_t)4 << 20)

static enum err_code map_region(struct pool *p, size_t bytes, size_t reserve, struct err *e)
{
    /* PROT_NONE costs nothing under any overcommit rule; only what the budget makes readable
     * counts. */
    unsigned char *raw = mmap(NULL, reserve + HUGE_PAGE, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED && reserve > bytes) {
        reserve = bytes;
        raw = mmap(NULL, reserve + HUGE_PAGE, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    if (raw == MAP_FAILED)
        return err_set_errno(e, ERR_NO_MEMORY, "cannot map %zu bytes", bytes);
    size_t skip = (HUGE_PAGE - (uintptr_t)raw % HUGE_PAGE) % HUGE_PAGE;
    if (skip > 0)
        (void)munmap(raw, skip);
    if (skip < HUGE_PAGE)
        (void)munmap(raw + skip + reserve, HUGE_PAGE - skip);
    p->base = raw + skip;
    p->mapped_bytes = reserve;
    if (mprotect(p->base, bytes, PROT_READ | PROT_WRITE) != 0)
        return err_set_errno(e, ERR_NO_MEMORY, "cannot reserve %zu bytes", bytes);
    p->usable_bytes = bytes;
    /* All three are optimisations: fewer TLB misses, no weights in core dumps, and no copy-on-write
     * of pages the device is writing when the process forks. */
    (void)madvise(p->base, reserve, MADV_HUGEPAGE);
    (void)madvise(p->base, reserve, MADV_DONTDUMP);
    (void)madvise(p->base, reserve, MADV_DONTFORK);
    return ERR_OK;
}

enum err_code pool_open(struct pool *p, uint64_t bytes, uint64_t reserve_bytes, const char *key,
                        struct err *e)
{
    *p = (struct pool){0};
    uint64_t usable = memory_bytes_usable();
    char a[32], b[32];
    if (bytes < POOL_GRANULE)
        return err_set_param(e, ERR_INVALID, key, "%s is %s: the smallest pool has 64 KiB", key,
                             size_format(bytes, a, sizeof(a)));
    if (bytes > usable || bytes / POOL_GRANULE >= POOL_NONE - 64)
        return err_set_param(e, ERR_NO_MEMORY, key,
                             "%s is %s, but this process may use %s: lower %s, or give it more",
                             key, size_format(bytes, a, sizeof(a)),
                             size_format(usable, b, sizeof(b)), key);
    uint64_t granules = bytes / POOL_GRANULE, reserve = reserve_bytes / POOL_GRANULE;
    enum err_code rc = map_region(p, (size_t)granules * POOL_GRANULE,
                                  (size_t)BASE_MAX(granules, reserve) * POOL_GRANULE, e);
    if (rc != ERR_OK) {
        pool_close(p);
        return err_wrap(e, "%s", key);
    }
    extents_init(&p->extents, (uint32_t)(p->mapped_bytes / POOL_GRANULE), (uint32_t)granules);
    p->slabs = (uint32_t)((p->mapped_bytes + POOL_SLAB - 1) / POOL_SLAB);
    p->slab_state = mem_alloc(p->slabs);
    return ERR_OK;
}

void pool_close(struct pool *p)
{
    pool_populate_stop(p);
    if (p->base != NULL)
        (void)munmap(p->base, p->mapped_bytes);
    extents_done(&p->extents);
    free((void *)p->slab_state);
    *p = (struct pool){0};
}

/* ---- populating ---- */

/* At most half of the time: loads into memory that was never touched were seen at 0.3 instead of
 * 2.2 GB/s while this thread ran flat out. Why is not proven; it happened less with pauses. */
static void leave_time(uint64_t busy_ns, size_t done)
{
    struct timespec ts = {.tv_nsec = (long)BASE_MIN(busy_ns, (uint64_t)20000000)};
    if (done > POPULATE_HURRY)
        (void)nanosleep(&ts, NULL);
}

static bool populate_slab(struct pool *p, uint32_t slab, size_t *done)
{
    size_t from = (size_t)slab * POOL_SLAB, to = BASE_MIN(from + POOL_SLAB, p->usable_bytes);
    for (size_t at = from; at < to; at += POPULATE_PIECE) {
        /* relaxed: only asks us to hurry, publishes nothing. */
        if (atomic_load_explicit(&p->stop, memory_order_relaxed))
            return false;
        size_t bytes = BASE_MIN(POPULATE_PIECE, to - at);
        uint64_t t0 = clock_ns();
        if (madvise(p->base + at, bytes, MADV_POPULATE_WRITE) != 0)
            return false; /* an old kernel, or no memory left: first use will do, or tell */
        *done += bytes;
        leave_time(clock_ns() - t0, *done);
    }
    /* release: pairs with the loader's acquire load before it registers the slab. */
    atomic_store_explicit(&p->slab_state[slab], SLAB_POPULATED, memory_order_release);
    if (p->wake != NULL)
        ring_wake(p->wake);
    return true;
}

static void *populate_run(void *arg)
{
    struct pool *p = arg;
    uint32_t slabs = (uint32_t)((p->usable_bytes + POOL_SLAB - 1) / POOL_SLAB);
    size_t done = 0;
    bool go = slabs > 0 && populate_slab(p, 0, &done);
    if (go && slabs > 1)
        go = populate_slab(p, slabs - 1, &done);
    for (uint32_t slab = 1; go && slab + 1 < slabs; slab++)
        go = populate_slab(p, slab, &done);
    return NULL;
}

void pool_populate(struct pool *p, struct ring *wake)
{
    struct err ignored;
    assert(!p->thread_runs);
    p->wake = wake;
    atomic_store_explicit(&p->stop, false, memory_order_relaxed); /* no thread yet to race with */
    p->thread_runs = thread_start(&p->thread, "mem-populate", populate_run, p, &ignored) == ERR_OK;
}

void pool_populate_stop(struct pool *p)
{
    if (!p->thread_runs)
        return;
    atomic_store_explicit(&p->stop, true, memory_order_relaxed); /* the join synchronises */
    thread_join(p->thread);
    p->thread_runs = false;
}

/* ---- live change of the budget ---- */

enum err_code pool_resize(struct pool *p, uint64_t bytes, struct err *e)
{
    uint64_t granules = bytes / POOL_GRANULE;
    char a[32], b[32];
    if (granules == 0 || granules > p->extents.capacity)
        return err_set(e, ERR_NO_MEMORY, "a pool of %s cannot become %s while it runs",
                       size_format(p->mapped_bytes, a, sizeof(a)),
                       size_format(bytes, b, sizeof(b)));
    size_t want = (size_t)granules * POOL_GRANULE;
    if (want > p->usable_bytes) {
        /* Shrinking leaves the range accessible (stragglers live there), so only growth maps. */
        if (mprotect(p->base, want, PROT_READ | PROT_WRITE) != 0)
            return err_set_errno(e, ERR_NO_MEMORY, "cannot reserve %zu bytes", want);
        p->usable_bytes = want;
    }
    extents_set_limit(&p->extents, (uint32_t)granules);
    return ERR_OK;
}

void pool_trim(struct pool *p)
{
    const struct extents *x = &p->extents;
    uint32_t end = (uint32_t)(p->usable_bytes / POOL_GRANULE);
    uint32_t at = 0, owner = 0;
    /* The block that reaches over the limit, if any, decides where to begin. */
    while (at < x->limit) {
        uint32_t count = extents_next(x, at, &owner);
        at += count == 0 ? 1 : count;
    }
    while (at < end) {
        uint32_t count = extents_next(x, at, &owner);
        if (count > 0) {
            at += count;
            continue;
        }
        uint32_t from = at;
        while (at < end && extents_next(x, at, &owner) == 0)
            at++;
        (void)madvise(pool_at(p, from), (size_t)(at - from) * POOL_GRANULE, MADV_DONTNEED);
    }
}
