/* Private to memtier/: one RAM pool. `struct extents` is the accountant (pure bookkeeping over
 * granules of 64 KiB, no memory of its own to hand out); `struct pool` is the mapping under it;
 * place.c decides what goes where. */
#ifndef SWITCHYARD_MEMTIER_POOL_H
#define SWITCHYARD_MEMTIER_POOL_H

#include "base/base.h"

#define POOL_GRANULE ((size_t)64 << 10)
#define POOL_SLAB ((size_t)64 << 20) /* unit of populating and of registering with io_uring */
#define POOL_NONE UINT32_MAX

static inline uint32_t pool_granules(uint64_t bytes)
{
    return (uint32_t)((bytes + POOL_GRANULE - 1) / POOL_GRANULE);
}

/* ---- extents.c: which granules are taken, and by whom. Engine thread. ---- */

struct extents {
    uint32_t capacity; /* granules of address space */
    uint32_t limit;    /* granules that may be used: the budget */
    uint32_t used;
    uint64_t *free_bits;  /* [capacity / 64]; set = free and below the limit */
    uint64_t *quiet_bits; /* as free_bits, without those a pending demotion still reads */
    uint32_t *owner;      /* [capacity]: at the first granule of a block, whose it is */
    uint32_t *count;      /* [capacity]: at the first granule of a block, its length */
};
void extents_init(struct extents *x, uint32_t capacity, uint32_t limit);
void extents_done(struct extents *x);
/* First granule of the lowest / highest free run of `count`, or POOL_NONE. */
uint32_t extents_find_low(const struct extents *x, uint32_t count);
uint32_t extents_find_high(const struct extents *x, uint32_t count); /* quiet ones only */
uint32_t extents_largest(const struct extents *x);                   /* longest free run */
void extents_take(struct extents *x, uint32_t first, uint32_t count, uint32_t owner);
void extents_give(struct extents *x, uint32_t first);
void extents_quiet(struct extents *x, uint32_t first, uint32_t count, bool quiet);
void extents_set_limit(struct extents *x, uint32_t limit);
/* Length of the free run or block that begins at `at`; *ret_owner = POOL_NONE when free. Granules
 * above the limit that are not taken are neither: 0 is returned past the last. */
uint32_t extents_next(const struct extents *x, uint32_t at, uint32_t *ret_owner);
bool extents_is_quiet(const struct extents *x, uint32_t first, uint32_t count);

/* ---- pool.c: the mapping ---- */

enum slab_state { SLAB_RAW, SLAB_POPULATED };

struct pool {
    unsigned char *base; /* 2 MiB aligned */
    size_t mapped_bytes; /* of address space; beyond the limit it is PROT_NONE or given back */
    size_t usable_bytes; /* readable and writable from base */
    struct extents extents;
    uint32_t slabs;
    _Atomic unsigned char
        *slab_state; /* [slabs], enum slab_state; written by the populating thread */
    pthread_t thread;
    bool thread_runs;
    _Atomic bool stop;
    struct ring *wake; /* told of every populated slab; may be NULL */
};
/* Map `bytes` (rounded down to granules) out of `reserve_bytes` of address space. */
enum err_code pool_open(struct pool *p, uint64_t bytes, uint64_t reserve_bytes, const char *key,
                        struct err *e) BASE_NODISCARD;
void pool_close(struct pool *p);
/* Fault the memory in with a thread of its own. Without it, first use does. */
void pool_populate(struct pool *p, struct ring *wake);
void pool_populate_stop(struct pool *p);
/* Change the budget, within the address space reserved at open. Not while populating. */
enum err_code pool_resize(struct pool *p, uint64_t bytes, struct err *e) BASE_NODISCARD;
/* Give free memory above the limit back to the system. Nothing may be reading or pinning it. */
void pool_trim(struct pool *p);

static inline unsigned char *pool_at(const struct pool *p, uint32_t granule)
{
    return p->base + (size_t)granule * POOL_GRANULE;
}

/* ---- place.c: pure planning ---- */

/* The pool as a list of neighbours in address order. */
struct place_block {
    uint32_t first, count;
    uint32_t owner; /* POOL_NONE = free */
    /* What evicting it costs; 0 for free runs, PLACE_BARRIER = must stay. */
    double cost;
};
#define PLACE_BARRIER (-1.0)

struct place {
    struct place_block *blocks; /* grows with use, kept */
    size_t blocks_count, blocks_cap;
    uint32_t *victims; /* owners to evict, in address order per request */
    size_t victims_count, victims_cap;
};
void place_done(struct place *p);
void place_push(struct place *p, uint32_t first, uint32_t count, uint32_t owner, double cost);
/* Room for `count` granules at the least cost; ties go to the lowest address, or the highest if
 * `from_top`. Its victims are appended, and the blocks updated as if it were done. POOL_NONE = no.
 */
uint32_t place_one(struct place *p, uint32_t count, bool from_top);

#endif
