/* What sits around the state machine: the second RAM tier, prefetch, a store that grows while it is
 * served, live budgets, and the policies on a replayed trace. */
#include "support.h"

#include "memtier/residency.h"

#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define SEGMENTS 16
#define MIB ((uint64_t)1 << 20)
static char *dir;
static struct sample samples[SEGMENTS];

static int make_store(void **state)
{
    (void)state;
    dir = test_dir_new(NULL);
    struct memtier_store *st = store_must_open(dir, MEMTIER_WRITE);
    for (size_t i = 0; i < SEGMENTS; i++)
        sample_init(&samples[i], 700 + i, MIB - 100 * i);
    sample_write(st, "set/all", samples, SEGMENTS);
    memtier_store_close(&st);
    return 0;
}

static int remove_store(void **state)
{
    (void)state;
    test_dir_remove(&dir);
    return 0;
}

static uint32_t seg_of(struct memtier *m, size_t i)
{
    return memtier_find(m, samples[i].hash);
}

/* ---- ddr ---- */

static void what_leaves_hbm_comes_back_from_ddr(void **state)
{
    (void)state;
    struct memtier_options opt = {.hbm_bytes = 4 * MIB, .ddr_bytes = 8 * MIB};
    struct memtier_store *st = store_must_open(dir, MEMTIER_READ);
    struct memtier *m = tiers_must_open(&opt, st);
    struct memtier_stats s;
    struct memtier_lease *l;
    struct err e;
    tiers_check(m, samples, 4, 1);
    tiers_check(m, samples + 4, 4, 2);
    tiers_settle(m);
    memtier_stats(m, &s);
    assert_int_equal(s.demotions, 4);
    assert_int_equal(memtier_where(m, seg_of(m, 0)), MEMTIER_DDR);
    uint32_t seg = seg_of(m, 1);
    assert_int_equal(memtier_reserve(m, &seg, 1, 3, &l, &e), ERR_OK);
    assert_int_equal(memtier_lease_origin(l), MEMTIER_DDR);
    assert_true(lease_wait(m, l));
    assert_true(sample_matches(&samples[1], memtier_ptr(m, seg)));
    memtier_release(m, &l);
    /* Its copy in ddr is kept, so the next eviction moves no byte. */
    tiers_settle(m);
    memtier_stats(m, &s);
    uint64_t demotions = s.demotions;
    assert_int_equal(s.promotions, 1);
    for (size_t i = 4; i < 8; i++)
        tiers_check(m, &samples[i], 1, 10 + i);
    tiers_settle(m);
    memtier_stats(m, &s);
    assert_int_equal(memtier_where(m, seg), MEMTIER_DDR);
    assert_true(s.demotions <= demotions + 1);
    /* Everything, over and over: budgets hold, data is right. */
    for (uint64_t round = 0; round < 6; round++) {
        for (size_t i = 0; i + 3 <= SEGMENTS; i += 3)
            tiers_check(m, samples + i, 3, 100 + round);
        memtier_stats(m, &s);
        assert_true(s.hbm_used <= s.hbm_budget && s.ddr_used <= s.ddr_budget);
        assert_true(s.hbm_peak <= s.hbm_budget);
    }
    assert_true(s.copy_bytes > 0 && s.copy_ns > 0);
    memtier_close(&m);
    memtier_store_close(&st);
}

static void impossible_tiers_are_refused(void **state)
{
    (void)state;
    struct memtier_store *st = store_must_open(dir, MEMTIER_READ);
    struct memtier *m = NULL;
    struct err e = {0};
    struct memtier_options opt = {.hbm_bytes = MIB, .ddr_bytes = UINT64_MAX / 2};
    assert_int_equal(memtier_open(&opt, st, &m, &e), ERR_NO_MEMORY);
    assert_string_equal(e.param, "tiers.ddr");
    opt = (struct memtier_options){.hbm_bytes = 100};
    assert_int_equal(memtier_open(&opt, st, &m, &e), ERR_INVALID);
    assert_string_equal(e.param, "tiers.hbm");
    opt = (struct memtier_options){.hbm_bytes = MIB, .policy = "clock"};
    assert_int_equal(memtier_open(&opt, st, &m, &e), ERR_INVALID);
    assert_string_equal(e.param, "tiers.policy");
    assert_null(m);
    memtier_close(&m);
    memtier_store_close(&st);
}

/* ---- dropping, counting, progress ---- */

static void what_is_dropped_goes_where_it_was_asked_to(void **state)
{
    (void)state;
    struct memtier_options opt = {.hbm_bytes = 8 * MIB, .ddr_bytes = 4 * MIB};
    struct memtier_store *st = store_must_open(dir, MEMTIER_READ);
    struct memtier *m = tiers_must_open(&opt, st);
    struct memtier_stats s;
    uint32_t segs[4];
    for (size_t i = 0; i < 4; i++)
        segs[i] = seg_of(m, i);
    tiers_check(m, samples, 4, 1);
    memtier_hold(m, segs[1]);
    memtier_demand(m, &segs[2], 1, 1);
    /* Held and demanded ones stay. */
    assert_int_equal(memtier_drop(m, segs, 4, true), samples[0].bytes + samples[3].bytes);
    tiers_settle(m);
    assert_int_equal(memtier_where(m, segs[0]), MEMTIER_DDR);
    assert_int_equal(memtier_where(m, segs[1]), MEMTIER_HBM);
    assert_int_equal(memtier_where(m, segs[2]), MEMTIER_HBM);
    tiers_check(m, samples, 4, 2);
    memtier_stats(m, &s);
    assert_int_equal(s.demotions, 2);
    assert_int_equal(s.demote_bytes, samples[0].bytes + samples[3].bytes);
    assert_int_equal(s.promotions, 2);
    assert_int_equal(s.promote_hist.count, 2);
    assert_int_equal(s.ddr_hits, 2);
    assert_int_equal(s.evictions_by_kind[MEMTIER_KIND_LAYER], 2);
    /* Not into ddr: the copies there go too. */
    memtier_unhold(m, segs[1]);
    memtier_demand(m, &segs[2], 1, -1);
    assert_true(memtier_drop(m, segs, 4, false) > 3 * MIB);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(memtier_where(m, segs[i]), MEMTIER_NVME);
    memtier_stats(m, &s);
    assert_int_equal(s.hbm_used, 0);
    assert_int_equal(s.ddr_used, 0);
    assert_int_equal(s.ddr_evictions, 2);
    memtier_close(&m);
    memtier_store_close(&st);
}

/* A request reserves its segments once a step: however many steps, it is one use. */
static void a_request_is_one_use_however_often_it_reserves(void **state)
{
    (void)state;
    struct memtier_options opt = {.hbm_bytes = 8 * MIB, .policy = "gdsf"};
    struct memtier_store *st = store_must_open(dir, MEMTIER_READ);
    struct memtier *m = tiers_must_open(&opt, st);
    uint32_t seg = seg_of(m, 0), other = seg_of(m, 1);
    for (int request = 0; request < 3; request++) {
        memtier_demand(m, &seg, 1, 1);
        for (uint64_t step = 0; step < 50; step++)
            tiers_check(m, samples, 1, step);
        memtier_demand(m, &seg, 1, -1);
    }
    assert_true(m->segs[seg]->uses > 2.9 && m->segs[seg]->uses <= 3);
    assert_int_equal(m->seq, 3);
    /* Without a demand each reservation counts. */
    tiers_check(m, samples + 1, 1, 100);
    tiers_check(m, samples + 1, 1, 101);
    assert_true(m->segs[other]->uses > 1.9);
    assert_int_equal(m->seq, 5);
    memtier_close(&m);
    memtier_store_close(&st);
}

static void what_is_missing_of_a_lease_falls_to_nothing(void **state)
{
    (void)state;
    struct memtier_options opt = {.hbm_bytes = 16 * MIB};
    struct memtier_store *st = store_must_open(dir, MEMTIER_READ);
    struct memtier *m = tiers_must_open(&opt, st);
    struct memtier_lease *l = NULL;
    struct err e;
    uint32_t segs[8];
    for (size_t i = 0; i < 8; i++)
        segs[i] = seg_of(m, i);
    tiers_check(m, samples, 2, 1);
    assert_int_equal(memtier_reserve(m, segs, 8, 2, &l, &e), ERR_OK);
    uint64_t all = memtier_lease_load_bytes(l), last = memtier_lease_missing_bytes(l);
    assert_true(last <= all && all > 5 * MIB);
    assert_true(lease_wait(m, l));
    assert_int_equal(memtier_lease_missing_bytes(l), 0);
    assert_int_equal(memtier_lease_load_bytes(l), all);
    memtier_release(m, &l);
    memtier_close(&m);
    memtier_store_close(&st);
}

/* ---- prefetch ---- */

static void prefetch_uses_free_space_and_gives_way(void **state)
{
    (void)state;
    struct memtier_options opt = {.hbm_bytes = 8 * MIB};
    struct memtier_store *st = store_must_open(dir, MEMTIER_READ);
    struct memtier *m = tiers_must_open(&opt, st);
    struct memtier_stats s;
    struct memtier_lease *l = NULL;
    struct err e;
    uint32_t segs[SEGMENTS];
    for (size_t i = 0; i < SEGMENTS; i++)
        segs[i] = seg_of(m, i);
    tiers_check(m, samples, 5, 1);
    assert_int_equal(memtier_prefetch(m, segs, SEGMENTS), 3);
    assert_int_equal(memtier_prefetch(m, segs, SEGMENTS), 0);
    memtier_stats(m, &s);
    assert_int_equal(s.evictions, 0);
    tiers_settle(m);
    assert_int_equal(memtier_where(m, segs[5]), MEMTIER_HBM);
    assert_int_equal(memtier_where(m, segs[7]), MEMTIER_HBM);
    tiers_check(m, samples + 5, 2, 2);
    memtier_stats(m, &s);
    assert_int_equal(s.hits, 2);
    assert_int_equal(s.prefetched, 3);
    assert_int_equal(s.prefetch_used, 2);
    /* A reservation that needs the room of prefetches still loading gets it after they gave way. */
    assert_int_equal(memtier_set_budget(m, 65536, &e), ERR_OK);
    tiers_settle(m);
    assert_int_equal(memtier_set_budget(m, 8 * MIB, &e), ERR_OK);
    tiers_settle(m);
    assert_int_equal(memtier_prefetch(m, segs, 8), 8);
    for (int tries = 0; memtier_reserve(m, segs + 8, 8, 3, &l, &e) != ERR_OK; tries++) {
        struct pollfd p = {.fd = memtier_fd(m), .events = POLLIN};
        assert_int_equal(e.code, ERR_BUSY);
        assert_true(tries < 1000);
        (void)poll(&p, 1, 1000);
        memtier_poll(m);
    }
    assert_true(lease_wait(m, l));
    memtier_release(m, &l);
    /* One that is still loading when it is reserved becomes a demand load. */
    assert_int_equal(memtier_set_budget(m, 65536, &e), ERR_OK);
    tiers_settle(m);
    assert_int_equal(memtier_set_budget(m, 8 * MIB, &e), ERR_OK);
    (void)memtier_prefetch(m, segs, 6);
    tiers_check(m, samples, 6, 4);
    memtier_close(&m);
    memtier_store_close(&st);
}

static void useless_prefetch_switches_itself_off(void **state)
{
    (void)state;
    struct memtier_options opt = {.hbm_bytes = 8 * MIB};
    struct memtier_store *st = store_must_open(dir, MEMTIER_READ);
    struct memtier *m = tiers_must_open(&opt, st);
    struct err e;
    uint32_t segs[8];
    size_t begun = 0;
    for (size_t i = 0; i < 8; i++)
        segs[i] = seg_of(m, i);
    for (int round = 0; round < 8; round++) {
        begun = memtier_prefetch(m, segs, 8);
        tiers_settle(m);
        assert_int_equal(memtier_set_budget(m, 65536, &e), ERR_OK); /* evicted unused */
        tiers_settle(m);
        assert_int_equal(memtier_set_budget(m, 8 * MIB, &e), ERR_OK);
    }
    assert_int_equal(begun, 0);
    /* Now and then it is tried again, and use brings it back. */
    for (int round = 0; round < 200; round++) {
        begun = memtier_prefetch(m, segs, 8);
        tiers_settle(m);
        tiers_check(m, samples, 8, 5);
        assert_int_equal(memtier_set_budget(m, 65536, &e), ERR_OK);
        tiers_settle(m);
        assert_int_equal(memtier_set_budget(m, 8 * MIB, &e), ERR_OK);
    }
    assert_int_equal(begun, 8);
    memtier_close(&m);
    memtier_store_close(&st);
}

/* ---- a store that grows ---- */

static void new_objects_are_served_after_refresh(void **state)
{
    (void)state;
    char *own = test_dir_new(NULL);
    struct memtier_store *st = store_must_open(own, MEMTIER_SERVE);
    struct memtier_options opt = {.hbm_bytes = 8 * MIB};
    struct memtier *m = tiers_must_open(&opt, st);
    struct memtier_gc_report gc;
    struct err e;
    assert_int_equal(memtier_find(m, samples[0].hash), UINT32_MAX);
    for (size_t i = 0; i < SEGMENTS; i++) {
        char name[16];
        snprintf(name, sizeof(name), "a%zu", i);
        sample_write(st, name, &samples[i], 1);
        assert_int_equal(memtier_refresh(m, &e), ERR_OK);
        assert_int_equal(seg_of(m, i), i);
        tiers_check(m, &samples[i], 1, i);
    }
    /* Removed and collected: a load that begins from the open file still works, and what was not
     * open fails with its reason while the rest serves. */
    assert_int_equal(memtier_store_remove(st, "a3", &e), ERR_OK);
    assert_int_equal(memtier_store_gc(st, &gc, &e), ERR_OK);
    assert_int_equal(gc.files_removed, 1);
    assert_int_equal(memtier_refresh(m, &e), ERR_OK);
    tiers_check(m, &samples[4], 1, 50);
    assert_int_equal(seg_of(m, 15), 15);
    /* Written again, it lies elsewhere; refresh tells the loader. */
    sample_write(st, "a3", &samples[3], 1);
    assert_int_equal(memtier_refresh(m, &e), ERR_OK);
    assert_int_equal(memtier_set_budget(m, 65536, &e), ERR_OK);
    tiers_settle(m);
    assert_int_equal(memtier_set_budget(m, 8 * MIB, &e), ERR_OK);
    tiers_check(m, &samples[3], 1, 60);
    memtier_close(&m);
    memtier_store_close(&st);
    test_dir_remove(&own);
}

/* ---- budgets and statistics ---- */

static void the_budget_changes_while_leases_are_out(void **state)
{
    (void)state;
    struct memtier_options opt = {.hbm_bytes = 10 * MIB};
    struct memtier_store *st = store_must_open(dir, MEMTIER_READ);
    struct memtier *m = tiers_must_open(&opt, st);
    struct memtier_stats s;
    struct memtier_lease *l;
    struct err e = {0};
    uint32_t segs[8];
    for (size_t i = 0; i < 8; i++)
        segs[i] = seg_of(m, i);
    assert_int_equal(memtier_reserve(m, segs, 8, 1, &l, &e), ERR_OK);
    assert_true(lease_wait(m, l));
    uint32_t page = memtier_page_open(m, MIB);
    assert_int_not_equal(page, UINT32_MAX);
    char *data = memtier_page_ptr(m, page);
    memset(data, 3, MIB);
    memtier_hold(m, segs[7]);
    assert_int_equal(memtier_set_budget(m, 100000, &e), ERR_NO_MEMORY);
    assert_non_null(strstr(e.msg, "held"));
    assert_int_equal(memtier_set_budget(m, 2 * MIB, &e), ERR_OK);
    for (size_t i = 0; i < 8; i++)
        assert_true(sample_matches(&samples[i], memtier_ptr(m, segs[i])));
    assert_int_equal(memtier_page_open(m, 65536), UINT32_MAX);
    tiers_settle(m);
    memtier_stats(m, &s);
    assert_int_equal(s.hbm_budget, 2 * MIB);
    assert_int_equal(s.hbm_used, 9 * MIB);
    memtier_release(m, &l);
    memtier_stats(m, &s);
    assert_true(s.hbm_used <= 2 * MIB);
    assert_int_equal(memtier_where(m, segs[7]), MEMTIER_HBM);
    assert_int_equal(data[MIB - 1], 3);
    memtier_page_unpin(m, page);
    tiers_check(m, &samples[7], 1, 3);
    assert_int_equal(memtier_set_budget(m, 12 * MIB, &e), ERR_OK);
    tiers_check(m, samples, 11, 4);
    assert_int_equal(memtier_set_budget(m, UINT64_MAX / 4, &e), ERR_NO_MEMORY);
    memtier_close(&m);
    memtier_store_close(&st);
}

struct watcher {
    struct memtier *m;
    _Atomic bool stop;
    uint64_t looks;
};

static void *watch(void *arg)
{
    struct watcher *w = arg;
    while (!w->stop) {
        struct memtier_stats s;
        memtier_stats(w->m, &s);
        w->looks += s.hbm_used <= s.hbm_budget;
    }
    return NULL;
}

static void statistics_may_be_read_by_any_thread(void **state)
{
    (void)state;
    struct memtier_options opt = {.hbm_bytes = 3 * MIB, .ddr_bytes = 3 * MIB};
    struct memtier_store *st = store_must_open(dir, MEMTIER_READ);
    struct watcher w = {.m = tiers_must_open(&opt, st)};
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, watch, &w), 0);
    for (uint64_t round = 0; round < 10; round++) {
        for (size_t i = 0; i + 2 <= SEGMENTS; i += 2)
            tiers_check(w.m, samples + i, 2, round);
    }
    w.stop = true;
    pthread_join(t, NULL);
    assert_true(w.looks > 0);
    memtier_close(&w.m);
    memtier_store_close(&st);
}

/* ---- policies ---- */

#define EXPERTS 150
#define REQUESTS 20000

struct expert {
    double bytes, uses;
    uint64_t last, next;
    bool resident;
};

static double zipf_cdf[EXPERTS];

static size_t zipf(struct rng *r)
{
    double u = rng_f64(r);
    size_t i = 0;
    while (i + 1 < EXPERTS && zipf_cdf[i] < u)
        i++;
    return i;
}

static double cost_of(const struct policy *p, const struct expert *x, uint64_t now)
{
    struct policy_view v = {.bytes = (uint64_t)x->bytes,
                            .idle_uses = now - x->last,
                            .uses = x->uses,
                            .load_seconds = 1e-3 + x->bytes / 1e9,
                            .resident_ns = UINT64_MAX};
    return policy_cost(p, &v) / x->bytes;
}

/* Requests that missed; NULL policy = the farthest next use (Belady). */
static unsigned replay(const struct policy *p, const size_t *trace, struct expert *x, double pool)
{
    unsigned misses = 0;
    double used = 0;
    for (uint64_t t = 0; t < REQUESTS; t++) {
        struct expert *want = &x[trace[t]];
        for (uint64_t k = t + 1; p == NULL && k <= REQUESTS; k++) {
            want->next = k;
            if (k == REQUESTS || trace[k] == trace[t])
                break;
        }
        misses += !want->resident;
        while (!want->resident && used + want->bytes > pool) {
            struct expert *worst = NULL;
            double worth = 1e300;
            for (size_t i = 0; i < EXPERTS; i++) {
                double c = p != NULL ? cost_of(p, &x[i], t) : -(double)x[i].next;
                if (x[i].resident && c < worth) {
                    worth = c;
                    worst = &x[i];
                }
            }
            assert_non_null(worst);
            worst->resident = false;
            used -= worst->bytes;
        }
        used += want->resident ? 0 : want->bytes;
        want->resident = true;
        want->uses = policy_decay(want->uses, t - want->last) + 1;
        want->last = t;
    }
    return misses;
}

static unsigned replay_fresh(const struct policy *p, const size_t *trace, uint64_t seed)
{
    struct expert x[EXPERTS] = {{0}};
    struct rng r;
    double total = 0;
    rng_init(&r, seed);
    for (size_t i = 0; i < EXPERTS; i++)
        total += x[i].bytes = (double)((uint64_t)1 << rng_below(&r, 4)) * 1e8;
    return replay(p, trace, x, total / 10);
}

static void gdsf_beats_lru_and_neither_beats_belady(void **state)
{
    (void)state;
    size_t *trace = mem_array(REQUESTS, sizeof(*trace));
    double sum = 0;
    for (size_t i = 0; i < EXPERTS; i++)
        sum += pow((double)(i + 1), -0.9);
    for (size_t i = 0; i < EXPERTS; i++)
        zipf_cdf[i] = (i > 0 ? zipf_cdf[i - 1] : 0) + pow((double)(i + 1), -0.9) / sum;
    for (uint64_t seed = 1; seed <= 2; seed++) {
        struct rng r;
        rng_init(&r, seed);
        for (size_t t = 0; t < REQUESTS; t++) /* sessions stick in every second case */
            trace[t] = t > 0 && seed % 2 == 0 && rng_below(&r, 10) < 6 ? trace[t - 1] : zipf(&r);
        unsigned lru = replay_fresh(&policy_lru, trace, seed);
        unsigned gdsf = replay_fresh(&policy_gdsf, trace, seed);
        unsigned belady = replay_fresh(NULL, trace, seed);
        print_message("misses of %d: lru %u, gdsf %u, belady %u\n", REQUESTS, lru, gdsf, belady);
        assert_true(belady < gdsf && gdsf < lru);
    }
    free(trace);
}

static void queued_and_fresh_segments_are_dear(void **state)
{
    (void)state;
    static const struct policy *const all[] = {&policy_lru, &policy_gdsf};
    for (size_t i = 0; i < BASE_COUNT(all); i++) {
        struct policy_view old = {.bytes = 1000,
                                  .idle_uses = 100,
                                  .uses = 2,
                                  .load_seconds = 0.5,
                                  .resident_ns = 100000000000};
        struct policy_view queued = old, fresh = old, used = old;
        queued.queued = 1;
        fresh.resident_ns = 900000000; /* less than twice its load time */
        used.idle_uses = 1;
        assert_true(policy_cost(all[i], &used) > policy_cost(all[i], &old));
        assert_true(policy_cost(all[i], &fresh) > policy_cost(all[i], &used));
        assert_true(policy_cost(all[i], &queued) > policy_cost(all[i], &fresh));
        assert_ptr_equal(policy_find(all[i]->name), all[i]);
    }
    assert_null(policy_find("random"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_leaves_hbm_comes_back_from_ddr),
        cmocka_unit_test(impossible_tiers_are_refused),
        cmocka_unit_test(what_is_dropped_goes_where_it_was_asked_to),
        cmocka_unit_test(a_request_is_one_use_however_often_it_reserves),
        cmocka_unit_test(what_is_missing_of_a_lease_falls_to_nothing),
        cmocka_unit_test(prefetch_uses_free_space_and_gives_way),
        cmocka_unit_test(useless_prefetch_switches_itself_off),
        cmocka_unit_test(new_objects_are_served_after_refresh),
        cmocka_unit_test(the_budget_changes_while_leases_are_out),
        cmocka_unit_test(statistics_may_be_read_by_any_thread),
        cmocka_unit_test(gdsf_beats_lru_and_neither_beats_belady),
        cmocka_unit_test(queued_and_fresh_segments_are_dear),
    };
    return cmocka_run_group_tests(tests, make_store, remove_store);
}
