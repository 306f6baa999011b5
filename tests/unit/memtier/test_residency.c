/* The state machine: leases, states, evictions, allocations, and short random schedules
 * (schedule.h). */
#include "schedule.h"

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

/* ---- simple behaviours ---- */

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

static void random_schedules_hold_the_invariants(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 24; seed++) {
        struct memtier_options opt = {.hbm_bytes = (3 + seed % 7) * MIB + 65536 * seed,
                                      .loader = (enum memtier_loader)(seed % 4)};
        (void)schedule_run(seed, opt,
                           (struct schedule_how){.steps = 300, .check_data = 8, .budget = false});
    }
}

static void random_schedules_with_ddr(void **state)
{
    (void)state;
    for (uint64_t seed = 100; seed < 120; seed++) {
        struct memtier_options opt = {.hbm_bytes = (3 + seed % 5) * MIB,
                                      .ddr_bytes = (1 + seed % 4) * 2 * MIB};
        (void)schedule_run(seed, opt,
                           (struct schedule_how){.steps = 300, .check_data = 8, .budget = false});
    }
}

static void random_schedules_with_a_spill_file(void **state)
{
    (void)state;
    uint64_t returned = 0;
    for (uint64_t seed = 300; seed < 330; seed++) {
        struct memtier_options opt = {.hbm_bytes = (2 + seed % 4) * MIB,
                                      .loader = (enum memtier_loader)(seed % 4),
                                      .spill_bytes = (8 + seed % 3) * MIB,
                                      .spill_rate = 1e12};
        returned += schedule_run(
            seed, opt,
            (struct schedule_how){.steps = 300, .check_data = 8, .budget = seed % 5 == 0});
    }
    assert_true(returned > 0);
}

static void random_schedules_with_budget_changes(void **state)
{
    (void)state;
    for (uint64_t seed = 200; seed < 220; seed++) {
        struct memtier_options opt = {.hbm_bytes = (3 + seed % 5) * MIB,
                                      .ddr_bytes = seed % 2 * 4 * MIB};
        (void)schedule_run(seed, opt,
                           (struct schedule_how){.steps = 300, .check_data = 8, .budget = true});
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
        cmocka_unit_test(random_schedules_with_a_spill_file),
        cmocka_unit_test(random_schedules_with_budget_changes),
    };
    return cmocka_run_group_tests(tests, schedule_make_store, schedule_remove_store);
}
