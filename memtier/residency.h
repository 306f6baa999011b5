/* Private to memtier/: the serving side's data. Everything is the engine thread's, except
 *   - `shown` and the populating and loading threads' parts (see pool.h, loader.h);
 *   - a segment's `load` and `demote` jobs while they are out to the loader.
 * The rules and the table of states are in README.md. */
#ifndef SWITCHYARD_MEMTIER_RESIDENCY_H
#define SWITCHYARD_MEMTIER_RESIDENCY_H

#include "memtier/loader.h"
#include "memtier/policy.h"
#include "memtier/pool.h"
#include "memtier/store.h"

/* Of the copy in hbm. */
enum seg_state {
    SEG_ABSENT,
    SEG_LOADING,    /* has its place; the job is queued or out */
    SEG_CANCELLING, /* as LOADING, but nobody wants it any more */
    SEG_RESIDENT,
    SEG_FAILED, /* absent, and the last load failed: `why` */
    SEG_STATES,
};
/* Of the copy in ddr. */
enum ddr_state { DDR_NONE, DDR_COPYING, DDR_HELD };

struct seg {
    struct hash128 hash;
    uint64_t bytes;
    uint32_t idx, granules;
    enum memtier_kind kind;
    struct load_file *file;
    uint64_t file_offset;

    enum seg_state state;
    enum ddr_state ddr;
    uint32_t at, ddr_at; /* first granule; valid while the state says there is a copy */
    uint32_t pins;       /* leases that contain it, loading or not */
    uint32_t holds, queued;
    bool submitted;         /* the load job is out to the loader */
    bool verified;          /* its hash was checked once in this process */
    bool prefetched;        /* came by prefetch and was not used yet */
    enum memtier_tier from; /* of the current or last load */
    uint64_t mark;          /* stamp of the last reservation or lease walk that saw it */
    uint64_t failed_at;     /* value of tiers.fail_serial when it failed */
    struct err *why;
    uint64_t used_seq, used_ns, resident_ns; /* last reservation; arrival by the caller's clock */
    uint64_t arrived_ns;                     /* arrival by clock_ns */
    double uses;
    struct seg *next_waiting; /* in tiers.waiting */

    /* Pages only (pages.c): no store file, not found by hash. */
    bool is_page, sealed;
    uint32_t depth;
    double remake_seconds;
    void *owner;
    struct seg *next_free;
    enum { SPILL_NONE, SPILL_WRITING, SPILL_HELD } spill; /* its copy in the spill file */
    uint32_t spill_at;
    struct page_list *list; /* the one it is in */
    struct seg *list_prev, *list_next;
    struct load_job load, demote; /* demote: to ddr, of a page to the spill file */
};

struct page_list {
    struct seg *first, *last;
};

struct spill {
    bool on;
    struct load_file file;
    struct extents extents; /* of the file, in granules */
    double rate;            /* of reading it, bytes/s, measured at open */
    uint32_t out;           /* writes at the loader */
    struct page_list dirty; /* idle and worth keeping, not written yet; the longest idle first */
    struct page_list away;  /* only in the file; the longest away first */
};

struct memtier_lease {
    struct memtier_lease *next_free;
    uint32_t *segs; /* as the caller gave them, duplicates included */
    size_t count, cap;
    struct memtier *m;
    size_t ready; /* leading segments known to be resident */
    bool missed;
    uint64_t load_bytes, reserve_ns, fail_serial;
    enum memtier_tier origin;
};

#define JOBS_MAX 4096
#define SEGS_PER_BLOCK 256

struct memtier {
    struct memtier_options opt;
    struct memtier_store *store;
    const struct policy *policy;
    struct pool hbm, ddr; /* ddr.base == NULL: none */
    struct loader *loader;

    struct seg **segs; /* addresses of the segs themselves never change */
    size_t segs_count;
    struct seg **blocks;
    size_t blocks_count;
    uint32_t *slots; /* open addressing by hash */
    size_t slots_count;
    struct load_file **files; /* [files_count], by the store's file id in files_id */
    uint32_t *files_id;
    size_t files_count;

    struct seg *free_pages; /* records without a page */
    size_t free_pages_count;
    memtier_page_gone_fn *page_gone;
    void *page_gone_ctx;

    struct spill spill;

    struct memtier_lease *free_leases;
    size_t leases_out;

    struct seg *waiting, *waiting_tail; /* loads that found the loader's ring full */
    size_t jobs_out;
    struct load_job forget;
    bool forget_out, trim_due, draining, free_changed;
    bool copied; /* the histograms of copies have changed since they were shown */

    uint64_t now_ns, seq, mark, fail_serial;
    double load_rate;
    uint64_t demotes_out;
    bool prefetch_off;
    uint64_t prefetch_calls, prefetch_used_recent, prefetch_wasted_recent;

    struct place place, place_ddr;
    uint32_t *missing; /* scratch of one reservation */
    uint32_t *missing_at;
    size_t missing_cap;

    struct memtier_stats stats; /* the engine's; copied to `shown` at the end of each call */
    uint64_t fixed_bytes;       /* pinned or held or pages: what room() cannot count on */
    struct lock lock;           /* guards shown */
    struct memtier_stats shown;
};

static inline bool seg_has_memory(const struct seg *s)
{
    return s->state == SEG_LOADING || s->state == SEG_CANCELLING || s->state == SEG_RESIDENT;
}

static inline uint64_t seg_footprint(const struct seg *s)
{
    return (uint64_t)s->granules * POOL_GRANULE;
}

/* ---- residency.c ---- */
void seg_move(struct seg *s, enum seg_state to); /* asserts that the transition is legal */
/* Take the segment's contribution to the counters out before a change and put it in after. */
void tally(struct memtier *m, const struct seg *s, int sign);
void publish_stats(struct memtier *m);
/* Give memory above the limit back once nothing can be reading it. */
void trim_if_quiet(struct memtier *m);
/* The segment has a place: start its load. */
void seg_start_load(struct memtier *m, struct seg *s, bool prefetch);
void seg_maybe_cancel(struct memtier *m, struct seg *s);
void seg_free_memory(struct memtier *m, struct seg *s, enum seg_state to);
uint32_t take_granules(struct memtier *m, uint32_t first, uint32_t count, uint32_t owner);
/* Leases for at least `count` segments each, so that reserving allocates nothing. */
void leases_init(struct memtier *m, size_t leases, size_t segs_each);

/* ---- tiers.c ---- */
struct seg *seg_new(struct memtier *m);

/* ---- pages.c ---- */
/* An idle page has lost its memory: unless the spill file has it, its owner is told and its record free again. */
void page_evicted(struct memtier *m, struct seg *s);
void page_gone_for_good(struct memtier *m, struct seg *s);
void page_unpin(struct memtier *m, struct seg *s);
/* If it has no pin any more: it waits for whoever comes next, or is freed if nobody can. */
void page_idle(struct memtier *m, struct seg *s);

/* ---- spill.c ---- */
enum err_code spill_open(struct memtier *m, struct err *e) BASE_NODISCARD; /* after the loader */
void spill_close(struct memtier *m);                                      /* after the loader */
void spill_idle(struct memtier *m, struct seg *s);    /* its last pin went */
void spill_used(struct seg *s);                       /* it has a pin again */
bool spill_evicted(struct memtier *m, struct seg *s); /* true = it is still in the file */
void spill_forget(struct memtier *m, struct seg *s);  /* it has no owner any more */
void spill_written(struct memtier *m, struct seg *s); /* the loader answered */
/* Begin to write what has been idle longest, if the pool is filling up. */
void spill_clean(struct memtier *m);

/* ---- room.c ---- */
bool seg_evictable(const struct seg *s);
void seg_evict(struct memtier *m, struct seg *s, bool demote);
/* Place every segment of m->missing[0..count): takes their granules and leaves them in missing_at.
 * All or nothing. Segments of the current reservation carry m->mark. */
bool room_make(struct memtier *m, size_t count);
uint32_t room_for_page(struct memtier *m, uint32_t granules);
uint64_t room_slide(struct memtier *m, uint64_t bytes_max);
void ddr_drop(struct memtier *m, struct seg *s);
void room_demote_done(struct memtier *m, struct seg *s);
/* After a shrink: evict and move until nothing lies above the limit and no more than the limit is
 * used, as far as pins and pages allow. Called again when either may have gone. */
void room_drain(struct memtier *m);

#endif
