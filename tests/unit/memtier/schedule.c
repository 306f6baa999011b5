/* The state machine under random schedules: reservations, releases, holds, pages, prefetch, demand,
 * compaction, budget changes and read faults in any order. After every step the invariants of
 * memtier/README.md are checked; a failure prints its seed. */
#include "schedule.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- one store for all ---- */

static char *dir;
struct sample samples[SEGMENTS];

int schedule_make_store(void **state)
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

int schedule_remove_store(void **state)
{
    (void)state;
    test_dir_remove(&dir);
    return 0;
}

struct tiers open_tiers(struct memtier_options opt)
{
    struct tiers t = {.store = store_must_open(dir, MEMTIER_READ)};
    t.m = tiers_must_open(&opt, t.store);
    for (size_t i = 0; i < SEGMENTS; i++)
        t.seg[i] = memtier_find(t.m, samples[i].hash);
    return t;
}

void close_tiers(struct tiers *t)
{
    memtier_close(&t->m);
    assert_null(t->m);
    memtier_store_close(&t->store);
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
    uint64_t returned; /* pages out of the spill file */
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

/* Pins an idle page, from the spill file if it is only there; false = no room, or it could not be
 * read. */
static bool bring_back(struct schedule *s, struct scheduled_page *p)
{
    struct memtier_lease *l = NULL;
    struct err e = {0};
    if (memtier_page_here(s->t.m, p->idx)) {
        memtier_page_pin(s->t.m, p->idx);
        return true;
    }
    if (memtier_reserve(s->t.m, &p->idx, 1, s->now += 1000000, &l, &e) != ERR_OK)
        return false;
    bool ok = lease_wait(s->t.m, l);
    if (ok) {
        memtier_page_pin(s->t.m, p->idx);
        s->returned++;
    }
    memtier_release(s->t.m, &l);
    return ok;
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
    } else if (p->is == IDLE && !bring_back(s, p)) {
        return;
    } else if (p->is == IDLE) {
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

uint64_t schedule_run(uint64_t seed, struct memtier_options opt, struct schedule_how how)
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
    for (int step = 0; step < how.steps; step++) {
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
            step_other(&s, how.budget);
        else
            memtier_poll(s.t.m);
        check_held(&s, before);
        check_invariants(&s, step);
        if (step % how.check_data == 0)
            check_data(&s, step);
    }
    finish(&s);
    return s.returned;
}
