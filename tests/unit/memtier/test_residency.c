/* The state machine under random schedules: reservations, releases, holds, pages, prefetch, demand,
 * compaction, budget changes and read faults in any order. After every step the invariants of
 * memtier/README.md are checked; a failure prints its seed. */
#include "support.h"

#include "memtier/residency.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- allocations of the code under test are counted (see meson.build) ---- */

static long allocations;
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t m);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t m);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n)
{
    __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED);
    return __real_malloc(n);
}
void *__wrap_calloc(size_t n, size_t m)
{
    __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED);
    return __real_calloc(n, m);
}
void *__wrap_realloc(void *p, size_t n)
{
    __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED);
    return __real_realloc(p, n);
}

/* ---- one store for all ---- */

#define SEGMENTS 60
#define MIB ((uint64_t)1 << 20)
static char *dir;
static struct sample samples[SEGMENTS];

static int make_store(void **state)
{
    (void)state;
    struct rng r;
    rng_init(&r, 99);
    dir = test_dir_new(NULL);
    struct memtier_store *st = store_must_open(dir, MEMTIER_WRITE);
    for (size_t i = 0; i < SEGMENTS; i++) {
        size_t bytes = 1 + rng_below(&r, i % 10 == 0 ? 3000000 : i % 3 == 0 ? 700000 : 200000);
        sample_init(&samples[i], 1000 + i, bytes);
    }
    for (size_t i = 0; i < SEGMENTS; i += 20) {
        char name[16];
        snprintf(name, sizeof(name), "set/%zu", i);
        sample_write(st, name, samples + i, 20);
    }
    memtier_store_close(&st);
    return 0;
}

static int remove_store(void **state)
{
    (void)state;
    test_dir_remove(&dir);
    return 0;
}

/* ---- simple behaviours ---- */

struct tiers {
    struct memtier_store *store;
    struct memtier *m;
    uint32_t seg[SEGMENTS];
};

static struct tiers open_tiers(struct memtier_options opt)
{
    struct tiers t = {.store = store_must_open(dir, MEMTIER_READ)};
    t.m = tiers_must_open(&opt, t.store);
    for (size_t i = 0; i < SEGMENTS; i++)
        t.seg[i] = memtier_find(t.m, samples[i].hash);
    return t;
}

static void close_tiers(struct tiers *t)
{
    memtier_close(&t->m);
    assert_null(t->m);
    memtier_store_close(&t->store);
}

static void loads_are_right_and_counted(void **state)
{
    (void)state;
    struct tiers t = open_tiers((struct memtier_options){.hbm_bytes = 64 * MIB});
    struct memtier_stats s;
    tiers_check(t.m, samples, SEGMENTS, 1);
    tiers_check(t.m, samples, SEGMENTS, 2);
    memtier_stats(t.m, &s);
    assert_int_equal(s.misses, SEGMENTS);
    assert_int_equal(s.hits, SEGMENTS);
    assert_int_equal(s.loads, SEGMENTS);
    assert_int_equal(s.load_hist.count, SEGMENTS);
    assert_int_equal(s.evictions, 0);
    assert_int_equal(s.segments_resident, SEGMENTS);
    assert_int_equal(s.hbm_pinned, 0);
    assert_int_equal(s.bytes_by_kind[MEMTIER_KIND_LAYER], s.hbm_used);
    assert_int_equal(memtier_room(t.m), s.hbm_budget);
    assert_true(s.load_ns > 0 && s.load_bytes > 5000000);
    assert_int_equal(memtier_find(t.m, (struct hash128){1, 2}), UINT32_MAX);
    assert_int_equal(memtier_where(t.m, UINT32_MAX), MEMTIER_NONE);
    close_tiers(&t);
}

static void a_duplicate_counts_once_and_order_is_kept(void **state)
{
    (void)state;
    struct tiers t = open_tiers((struct memtier_options){.hbm_bytes = 64 * MIB});
    uint32_t list[5] = {t.seg[3], t.seg[4], t.seg[3], t.seg[5], t.seg[4]};
    struct memtier_lease *l;
    struct memtier_stats s;
    struct err e;
    assert_int_equal(memtier_reserve(t.m, list, 5, 7, &l, &e), ERR_OK);
    assert_int_equal(memtier_lease_load_bytes(l),
                     samples[3].bytes + samples[4].bytes + samples[5].bytes);
    assert_int_equal(memtier_lease_origin(l), MEMTIER_NVME);
    assert_true(lease_wait(t.m, l));
    assert_int_equal(memtier_lease_ready(l), 5);
    memtier_stats(t.m, &s);
    assert_int_equal(s.misses, 3);
    memtier_release(t.m, &l);
    assert_null(l);
    memtier_release(t.m, &l);
    memtier_stats(t.m, &s);
    assert_int_equal(s.hbm_pinned, 0);
    assert_int_equal(memtier_reserve(t.m, list, 5, 8, &l, &e), ERR_OK);
    assert_int_equal(memtier_lease_ready(l), 5);
    assert_int_equal(memtier_lease_ready_ns(l), 8);
    assert_int_equal(memtier_lease_origin(l), MEMTIER_HBM);
    assert_int_equal(memtier_lease_load_bytes(l), 0);
    memtier_release(t.m, &l);
    assert_int_equal(memtier_reserve(t.m, NULL, 0, 9, &l, &e), ERR_OK);
    assert_int_equal(memtier_lease_ready(l), 0);
    memtier_release(t.m, &l);
    list[1] = 100000;
    assert_int_equal(memtier_reserve(t.m, list, 5, 7, &l, &e), ERR_INVALID);
    close_tiers(&t);
}

static void one_load_serves_all_waiters(void **state)
{
    (void)state;
    struct tiers t = open_tiers((struct memtier_options){.hbm_bytes = 64 * MIB});
    struct memtier_lease *l[4];
    struct memtier_stats s;
    struct err e;
    for (int i = 0; i < 4; i++)
        assert_int_equal(memtier_reserve(t.m, t.seg, 10, 1, &l[i], &e), ERR_OK);
    memtier_release(t.m, &l[0]); /* the others still wait: nothing is cancelled */
    for (int i = 1; i < 4; i++)
        assert_true(lease_wait(t.m, l[i]));
    memtier_stats(t.m, &s);
    assert_int_equal(s.loads, 10);
    assert_int_equal(s.cancelled, 0);
    for (int i = 1; i < 4; i++)
        memtier_release(t.m, &l[i]);
    close_tiers(&t);
}

static void resident_reserve_and_release_allocate_nothing(void **state)
{
    (void)state;
    struct tiers t = open_tiers((struct memtier_options){.hbm_bytes = 64 * MIB});
    struct memtier_lease *l[8];
    struct err e;
    tiers_check(t.m, samples, SEGMENTS, 1);
    tiers_settle(t.m);
    struct pool *p = &t.m->hbm;
    pool_populate_stop(p); /* its thread is not what is counted */
    long before = __atomic_load_n(&allocations, __ATOMIC_RELAXED);
    for (int round = 0; round < 100; round++) {
        for (int i = 0; i < 8; i++)
            assert_int_equal(memtier_reserve(t.m, t.seg, SEGMENTS, 2, &l[i], &e), ERR_OK);
        for (int i = 0; i < 8; i++) {
            memtier_poll(t.m);
            assert_int_equal(memtier_lease_ready(l[i]), SEGMENTS);
            memtier_release(t.m, &l[i]);
        }
    }
    assert_int_equal(__atomic_load_n(&allocations, __ATOMIC_RELAXED) - before, 0);
    assert_true(before > 0);
    close_tiers(&t);
}

static void what_can_never_fit_and_what_does_not_fit_now(void **state)
{
    (void)state;
    struct tiers t = open_tiers((struct memtier_options){.hbm_bytes = 4 * MIB});
    struct memtier_lease *a, *b = NULL;
    struct memtier_stats before, after;
    struct err e = {0};
    /* All of them together exceed the budget. */
    assert_int_equal(memtier_reserve(t.m, t.seg, SEGMENTS, 1, &a, &e), ERR_NO_MEMORY);
    assert_string_equal(e.param, "tiers.hbm");
    assert_non_null(strstr(e.msg, "4.0 MiB"));
    uint32_t small[8], rest[24];
    uint64_t bytes = 0;
    size_t n = 0;
    for (size_t i = 1; n < 8; i += 3) {
        if (samples[i].bytes < 200000)
            small[n++] = t.seg[i];
    }
    n = 0;
    for (size_t i = 2; n < 24 && i < SEGMENTS && bytes < MIB; i += 3) {
        if (samples[i].bytes >= 200000)
            continue;
        rest[n++] = t.seg[i];
        bytes += pool_granules(samples[i].bytes) * POOL_GRANULE;
    }
    assert_int_equal(memtier_reserve(t.m, small, 8, 1, &a, &e), ERR_OK);
    assert_true(lease_wait(t.m, a));
    /* Pages take the rest but one granule. */
    size_t pages = memtier_page_room(t.m, 65536);
    uint32_t page[64];
    for (size_t i = 0; i + 1 < pages; i++)
        assert_int_not_equal(page[i] = memtier_page_open(t.m, 65536), UINT32_MAX);
    memtier_stats(t.m, &before);
    assert_int_equal(memtier_reserve(t.m, rest, n, 1, &b, &e), ERR_BUSY);
    memtier_stats(t.m, &after);
    assert_int_equal(before.hbm_used, after.hbm_used);
    assert_int_equal(before.hbm_pinned, after.hbm_pinned);
    assert_int_equal(before.misses, after.misses);
    for (size_t i = 0; i + 1 < pages; i++)
        memtier_page_unpin(t.m, page[i]);
    for (size_t i = 0; i < 8; i++)
        memtier_hold(t.m, small[i]);
    memtier_release(t.m, &a);
    assert_int_equal(memtier_reserve(t.m, rest, n, 1, &b, &e), ERR_OK);
    memtier_release(t.m, &b);
    for (size_t i = 0; i < n; i++)
        memtier_hold(t.m, rest[i]); /* absent ones count as soon as they are loaded */
    for (size_t i = 0; i < 8; i++)
        assert_int_equal(memtier_where(t.m, small[i]), MEMTIER_HBM);
    close_tiers(&t);
}

static void unwanted_loads_are_cancelled_and_revived(void **state)
{
    (void)state;
    struct tiers t = open_tiers((struct memtier_options){.hbm_bytes = 64 * MIB});
    struct memtier_lease *l;
    struct memtier_stats s;
    struct err e;
    uint64_t total = 0;
    for (int round = 0; round < 50; round++) {
        assert_int_equal(memtier_reserve(t.m, t.seg, SEGMENTS, 1, &l, &e), ERR_OK);
        total += memtier_lease_load_bytes(l);
        memtier_release(t.m, &l);
        if (round % 3 == 0)
            memtier_poll(t.m);
        assert_int_equal(memtier_reserve(t.m, t.seg, 5 + (size_t)round, 1, &l, &e), ERR_OK);
        if (round % 2 == 0) {
            assert_true(lease_wait(t.m, l));
            for (size_t i = 0; i < 5 + (size_t)round; i++)
                assert_true(sample_matches(&samples[i], memtier_ptr(t.m, t.seg[i])));
        }
        memtier_release(t.m, &l);
        if (round % 10 == 9) {
            tiers_settle(t.m);
            assert_int_equal(memtier_set_budget(t.m, MIB, &e), ERR_OK);
            tiers_settle(t.m);
            assert_int_equal(memtier_set_budget(t.m, 64 * MIB, &e), ERR_OK);
            tiers_settle(t.m);
        }
    }
    tiers_settle(t.m);
    memtier_stats(t.m, &s);
    assert_true(s.cancelled > 0);
    assert_true(s.load_bytes < total);
    assert_int_equal(s.waiters, 0);
    tiers_check(t.m, samples, SEGMENTS, 1);
    close_tiers(&t);
}

static void lru_evicts_the_oldest(void **state)
{
    (void)state;
    /* Three segments of two granules each, room for two of them. */
    struct tiers t = open_tiers((struct memtier_options){.hbm_bytes = 4 * 65536, .policy = "lru"});
    size_t one[3], n = 0;
    for (size_t i = 0; i < SEGMENTS && n < 3; i++) {
        if (pool_granules(samples[i].bytes) == 2)
            one[n++] = i;
    }
    assert_int_equal(n, 3);
    uint64_t now = 1000000000;
    tiers_check(t.m, &samples[one[0]], 1, now);
    tiers_check(t.m, &samples[one[1]], 1, now += 60000000000ull);
    tiers_check(t.m, &samples[one[0]], 1, now += 60000000000ull);
    tiers_check(t.m, &samples[one[2]], 1, now += 60000000000ull);
    assert_int_equal(memtier_where(t.m, t.seg[one[0]]), MEMTIER_HBM);
    assert_int_equal(memtier_where(t.m, t.seg[one[1]]), MEMTIER_NVME);
    /* What queued requests need stays although it is older. */
    memtier_demand(t.m, &t.seg[one[0]], 1, 1);
    tiers_check(t.m, &samples[one[1]], 1, now += 60000000000ull);
    assert_int_equal(memtier_where(t.m, t.seg[one[0]]), MEMTIER_HBM);
    assert_int_equal(memtier_where(t.m, t.seg[one[2]]), MEMTIER_NVME);
    memtier_demand(t.m, &t.seg[one[0]], 1, -1);
    tiers_check(t.m, &samples[one[2]], 1, now += 60000000000ull);
    assert_int_equal(memtier_where(t.m, t.seg[one[0]]), MEMTIER_NVME);
    close_tiers(&t);
}

/* Held segments in the middle of the pool leave no hole that is long enough: they are moved. */
static void held_segments_move_when_only_that_makes_room(void **state)
{
    (void)state;
    struct tiers t = open_tiers((struct memtier_options){.hbm_bytes = 6 * MIB});
    size_t big = SEGMENTS, small[SEGMENTS], n = 0;
    for (size_t i = 0; i < SEGMENTS; i++) {
        if (samples[i].bytes > 2200000 && big == SEGMENTS)
            big = i;
        else if (samples[i].bytes < 200000)
            small[n++] = i;
    }
    assert_true(big < SEGMENTS && n > 30);
    for (size_t i = 0; i < n; i++)
        tiers_check(t.m, &samples[small[i]], 1, i);
    /* Hold a few that are spread over what is resident. */
    size_t held = 0;
    for (size_t i = 0; i < n; i += 4) {
        if (memtier_where(t.m, t.seg[small[i]]) == MEMTIER_HBM) {
            memtier_hold(t.m, t.seg[small[i]]);
            held++;
        }
    }
    assert_true(held >= 3);
    tiers_check(t.m, &samples[big], 1, 1000);
    for (size_t i = 0; i < n; i += 4) {
        if (t.m->segs[t.seg[small[i]]]->holds > 0)
            tiers_check(t.m, &samples[small[i]], 1, 1001);
    }
    struct memtier_stats s;
    memtier_stats(t.m, &s);
    assert_int_equal(s.misses, n + 1);
    close_tiers(&t);
}

/* ---- random schedules ---- */

struct schedule {
    struct tiers t;
    struct rng r;
    uint64_t seed;
    struct memtier_lease *lease[6];
    uint32_t list[6][16];
    const void *ptr[6][16]; /* as first seen: pinned segments do not move */
    size_t len[6];
    struct scheduled_page {
        uint32_t idx;
        size_t bytes;
        const unsigned char *at; /* while pinned */
        enum { NONE, PINNED, IDLE } is;
        bool sealed;
    } page[8];
    unsigned holds[SEGMENTS];
    bool shrinking;
    uint64_t now;
};

static int random_fault(void *ctx, uint64_t offset, size_t bytes)
{
    (void)bytes;
    /* A function of the offset and a counter: no lock, any thread. */
    uint64_t n = __atomic_add_fetch((uint64_t *)ctx, 1, __ATOMIC_RELAXED);
    return (n * 2654435761u + offset / 4096) % 37 == 0 ? EIO : 0;
}

static void check_invariants(struct schedule *s, int step)
{
    struct memtier *m = s->t.m;
    struct memtier_stats st;
    uint64_t sum = 0, pinned = 0, held = 0;
    memtier_stats(m, &st);
    for (int k = 0; k < MEMTIER_KINDS; k++)
        sum += st.bytes_by_kind[k];
    for (size_t i = 0; i < m->segs_count; i++) {
        const struct seg *g = m->segs[i];
        if (seg_has_memory(g) && g->pins > 0)
            pinned += seg_footprint(g);
        if (seg_has_memory(g) && g->holds > 0)
            held += seg_footprint(g);
    }
    bool ok = sum == st.hbm_used && pinned == st.hbm_pinned && held == st.hbm_held &&
              st.ddr_used <= st.ddr_budget;
    if (st.hbm_used <= st.hbm_budget)
        s->shrinking = false;
    ok = ok && (s->shrinking || st.hbm_used <= st.hbm_budget);
    if (!ok)
        fail_msg("seed %lu step %d: used %lu of %lu, by kind %lu, pinned %lu/%lu, held %lu/%lu",
                 (unsigned long)s->seed, step, (unsigned long)st.hbm_used,
                 (unsigned long)st.hbm_budget, (unsigned long)sum, (unsigned long)st.hbm_pinned,
                 (unsigned long)pinned, (unsigned long)st.hbm_held, (unsigned long)held);
}

/* What is ready in a lease has the right bytes, and pages keep what was written to them. */
static void check_data(struct schedule *s, int step)
{
    for (int k = 0; k < 6; k++) {
        if (s->lease[k] == NULL)
            continue;
        size_t ready = memtier_lease_ready(s->lease[k]);
        for (size_t i = 0; i < ready; i++) {
            uint32_t seg = s->list[k][i];
            size_t at = 0;
            while (s->t.seg[at] != seg)
                at++;
            const void *ptr = memtier_ptr(s->t.m, seg);
            if (s->ptr[k][i] != NULL && s->ptr[k][i] != ptr)
                fail_msg("seed %lu step %d: pinned segment %zu moved", (unsigned long)s->seed, step,
                         at);
            s->ptr[k][i] = ptr;
            if (!sample_matches(&samples[at], ptr))
                fail_msg("seed %lu step %d: segment %zu is wrong", (unsigned long)s->seed, step,
                         at);
        }
    }
    for (int k = 0; k < 8; k++) {
        const struct scheduled_page *p = &s->page[k];
        for (size_t i = 0; p->is == PINNED && i < p->bytes; i += 4096) {
            if (p->at[i] != (unsigned char)(k + 1) || memtier_page_ptr(s->t.m, p->idx) != p->at)
                fail_msg("seed %lu step %d: page %d is wrong", (unsigned long)s->seed, step, k);
        }
    }
}

static void page_gone(void *ctx, void *owner)
{
    struct scheduled_page *p = owner;
    (void)ctx;
    assert_true(p->is == IDLE);
    p->is = NONE;
}

static void step_reserve(struct schedule *s, int k)
{
    size_t n = 1 + rng_below(&s->r, 16), base = rng_below(&s->r, SEGMENTS);
    struct err e = {0};
    for (size_t i = 0; i < n; i++)
        s->list[k][i] = s->t.seg[(base + i + rng_below(&s->r, 3)) % SEGMENTS];
    s->len[k] = n;
    memset(s->ptr[k], 0, sizeof(s->ptr[k]));
    enum err_code rc = memtier_reserve(s->t.m, s->list[k], n, s->now += 1000000, &s->lease[k], &e);
    if (rc != ERR_OK)
        s->lease[k] = NULL;
    if (rc != ERR_OK && rc != ERR_BUSY && rc != ERR_NO_MEMORY)
        fail_msg("seed %lu: %s", (unsigned long)s->seed, e.msg);
}

static void step_lease(struct schedule *s)
{
    int k = (int)rng_below(&s->r, 6);
    if (s->lease[k] == NULL) {
        step_reserve(s, k);
        return;
    }
    if (rng_below(&s->r, 2) == 0)
        (void)lease_wait(s->t.m, s->lease[k]);
    memtier_release(s->t.m, &s->lease[k]);
}

static void open_page(struct schedule *s, int k)
{
    struct scheduled_page *p = &s->page[k];
    p->bytes = 1 + rng_below(&s->r, 400000);
    p->sealed = false;
    size_t room = memtier_page_room(s->t.m, p->bytes);
    p->idx = memtier_page_open(s->t.m, p->bytes);
    if (p->idx == UINT32_MAX) {
        if (room > 0 && !s->shrinking && s->t.m->demotes_out == 0)
            fail_msg("seed %lu: room for %zu pages, but none was given", (unsigned long)s->seed,
                     room);
        return;
    }
    p->is = PINNED;
    p->at = memset(memtier_page_ptr(s->t.m, p->idx), k + 1, p->bytes);
}

/* A page that was sealed stays after its last pin until its room is needed, with what was in it. */
static void step_page(struct schedule *s)
{
    int k = (int)rng_below(&s->r, 8);
    struct scheduled_page *p = &s->page[k];
    struct memtier_page_worth worth = {.remake_seconds = 0.01 * (double)rng_below(&s->r, 9),
                                       .depth = (uint32_t)rng_below(&s->r, 5)};
    if (p->is == NONE) {
        open_page(s, k);
    } else if (p->is == IDLE && rng_below(&s->r, 4) == 0) {
        memtier_page_drop(s->t.m, p->idx);
        p->is = NONE;
    } else if (p->is == IDLE) {
        memtier_page_pin(s->t.m, p->idx);
        p->at = memtier_page_ptr(s->t.m, p->idx);
        p->is = PINNED;
    } else {
        p->sealed |= rng_below(&s->r, 3) > 0;
        if (p->sealed)
            memtier_page_seal(s->t.m, p->idx, &worth, p);
        p->is = p->sealed ? IDLE : NONE;
        memtier_page_unpin(s->t.m, p->idx);
    }
}

static void step_hold(struct schedule *s)
{
    size_t i = rng_below(&s->r, SEGMENTS);
    if (s->holds[i] > 0 && rng_below(&s->r, 3) > 0) {
        memtier_unhold(s->t.m, s->t.seg[i]);
        s->holds[i]--;
    } else if (samples[i].bytes < 300000) {
        memtier_hold(s->t.m, s->t.seg[i]);
        s->holds[i]++;
    }
}

static void step_other(struct schedule *s, bool budget)
{
    uint32_t list[8];
    size_t base = rng_below(&s->r, SEGMENTS);
    struct err e;
    switch (rng_below(&s->r, 6)) {
    case 0:
        for (size_t i = 0; i < 8; i++)
            list[i] = s->t.seg[(base + i) % SEGMENTS];
        (void)memtier_prefetch(s->t.m, list, 8);
        break;
    case 1:
        memtier_prefetch_cancel(s->t.m);
        break;
    case 2:
        (void)memtier_compact(s->t.m, rng_below(&s->r, 4) * MIB);
        break;
    case 3:
        memtier_demand(s->t.m, &s->t.seg[base], 1, 1);
        break;
    case 4:
        if (s->t.m->segs[s->t.seg[base]]->queued > 0)
            memtier_demand(s->t.m, &s->t.seg[base], 1, -1);
        break;
    default:
        if (budget && memtier_set_budget(s->t.m, (2 + rng_below(&s->r, 10)) * MIB, &e) == ERR_OK)
            s->shrinking = true; /* until it is seen to have drained */
    }
}

static void check_held(const struct schedule *s, const enum memtier_tier *before)
{
    for (size_t i = 0; i < SEGMENTS; i++) {
        if (s->holds[i] > 0 && before[i] == MEMTIER_HBM &&
            memtier_where(s->t.m, s->t.seg[i]) != MEMTIER_HBM)
            fail_msg("seed %lu: held segment %zu was evicted", (unsigned long)s->seed, i);
    }
}

static void finish(struct schedule *s)
{
    for (int k = 0; k < 6; k++)
        memtier_release(s->t.m, &s->lease[k]);
    for (int k = 0; k < 8; k++) {
        if (s->page[k].is == PINNED) {
            s->page[k].is = IDLE;
            memtier_page_unpin(s->t.m, s->page[k].idx);
        }
        if (s->page[k].is == IDLE && s->page[k].sealed)
            memtier_page_drop(s->t.m, s->page[k].idx);
    }
    tiers_settle(s->t.m);
    struct memtier_stats st;
    memtier_stats(s->t.m, &st);
    assert_int_equal(st.hbm_pinned, 0);
    assert_int_equal(st.pages, 0);
    assert_int_equal(st.waiters, 0);
    assert_int_equal(st.bytes_by_kind[MEMTIER_KIND_KV], 0);
    assert_true(st.hbm_used <= st.hbm_budget);
    close_tiers(&s->t);
}

static void run_schedule(uint64_t seed, struct memtier_options opt, bool budget)
{
    struct schedule s = {.seed = seed};
    uint64_t faults = 0;
    rng_init(&s.r, seed);
    if (seed % 3 == 0) {
        opt.fault = random_fault;
        opt.fault_ctx = &faults;
    }
    opt.policy = seed % 2 == 0 ? "gdsf" : "lru";
    s.t = open_tiers(opt);
    memtier_on_page_gone(s.t.m, page_gone, NULL);
    for (int step = 0; step < 300; step++) {
        enum memtier_tier before[SEGMENTS];
        uint64_t what = rng_below(&s.r, 20);
        for (size_t i = 0; i < SEGMENTS; i++)
            before[i] = memtier_where(s.t.m, s.t.seg[i]);
        if (what < 10)
            step_lease(&s);
        else if (what < 14)
            step_page(&s);
        else if (what < 16)
            step_hold(&s);
        else if (what < 18)
            step_other(&s, budget);
        else
            memtier_poll(s.t.m);
        check_held(&s, before);
        check_invariants(&s, step);
        if (step % 8 == 0)
            check_data(&s, step);
    }
    finish(&s);
}

static void random_schedules_hold_the_invariants(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 24; seed++) {
        struct memtier_options opt = {.hbm_bytes = (3 + seed % 7) * MIB + 65536 * seed,
                                      .loader = (enum memtier_loader)(seed % 4)};
        run_schedule(seed, opt, false);
    }
}

static void random_schedules_with_ddr(void **state)
{
    (void)state;
    for (uint64_t seed = 100; seed < 120; seed++) {
        struct memtier_options opt = {.hbm_bytes = (3 + seed % 5) * MIB,
                                      .ddr_bytes = (1 + seed % 4) * 2 * MIB};
        run_schedule(seed, opt, false);
    }
}

static void random_schedules_with_budget_changes(void **state)
{
    (void)state;
    for (uint64_t seed = 200; seed < 220; seed++) {
        struct memtier_options opt = {.hbm_bytes = (3 + seed % 5) * MIB,
                                      .ddr_bytes = seed % 2 * 4 * MIB};
        run_schedule(seed, opt, true);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loads_are_right_and_counted),
        cmocka_unit_test(a_duplicate_counts_once_and_order_is_kept),
        cmocka_unit_test(one_load_serves_all_waiters),
        cmocka_unit_test(resident_reserve_and_release_allocate_nothing),
        cmocka_unit_test(what_can_never_fit_and_what_does_not_fit_now),
        cmocka_unit_test(unwanted_loads_are_cancelled_and_revived),
        cmocka_unit_test(lru_evicts_the_oldest),
        cmocka_unit_test(held_segments_move_when_only_that_makes_room),
        cmocka_unit_test(random_schedules_hold_the_invariants),
        cmocka_unit_test(random_schedules_with_ddr),
        cmocka_unit_test(random_schedules_with_budget_changes),
    };
    return cmocka_run_group_tests(tests, make_store, remove_store);
}
