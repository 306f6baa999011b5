/* The accountant, the planner and the mapping of a pool, against slow and obvious oracles. */
#include "support.h"

#include "memtier/pool.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- extents against an array with one entry per granule ---- */

struct oracle {
    uint32_t capacity, limit;
    uint32_t owner[700]; /* 0 = free */
    bool noisy[700];
};

static bool oracle_free(const struct oracle *o, uint32_t at)
{
    return at < o->limit && o->owner[at] == 0;
}

static uint32_t oracle_find(const struct oracle *o, uint32_t count, bool high)
{
    uint32_t best = POOL_NONE;
    for (uint32_t at = 0; at + count <= o->limit; at++) {
        bool ok = true;
        for (uint32_t i = at; i < at + count && ok; i++)
            ok = oracle_free(o, i) && !(high && o->noisy[i]);
        if (ok && (high || best == POOL_NONE))
            best = at;
    }
    return best;
}

static void compare(const struct extents *x, const struct oracle *o)
{
    uint32_t used = 0, owner, run = 0, largest = 0;
    for (uint32_t i = 0; i < o->capacity; i++) {
        used += o->owner[i] != 0;
        run = oracle_free(o, i) ? run + 1 : 0;
        largest = BASE_MAX(largest, run);
    }
    assert_int_equal(x->used, used);
    assert_int_equal(extents_largest(x), largest);
    for (uint32_t at = 0; at < o->capacity;) {
        uint32_t count = extents_next(x, at, &owner);
        if (count == 0) {
            assert_true(at >= o->limit && o->owner[at] == 0);
            at++;
            continue;
        }
        for (uint32_t i = at; i < at + count; i++) {
            if (owner == POOL_NONE)
                assert_true(oracle_free(o, i));
            else
                assert_int_equal(o->owner[i], owner);
        }
        at += count;
    }
}

struct block {
    uint32_t first, count;
};

static void extents_agree_with_the_oracle(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct rng r;
        struct extents x;
        struct oracle o = {.capacity = 1 + (uint32_t)(seed * 11) % 690};
        struct block blocks[700];
        size_t n = 0;
        uint32_t serial = 0;
        rng_init(&r, seed);
        o.limit = 1 + (uint32_t)rng_below(&r, o.capacity);
        extents_init(&x, o.capacity, o.limit);
        for (int step = 0; step < 400; step++) {
            uint64_t what = rng_below(&r, 20);
            uint32_t count = 1 + (uint32_t)rng_below(&r, rng_below(&r, 4) == 0 ? 150 : 12);
            bool high = rng_below(&r, 2) == 0;
            uint32_t at = high ? extents_find_high(&x, count) : extents_find_low(&x, count);
            if (at != oracle_find(&o, count, high))
                fail_msg("seed %lu step %d: found %u", (unsigned long)seed, step, at);
            if (what < 10 && at != POOL_NONE) {
                extents_take(&x, at, count, ++serial);
                for (uint32_t i = at; i < at + count; i++)
                    o.owner[i] = serial, o.noisy[i] = false;
                blocks[n++] = (struct block){at, count};
            } else if (what < 17 && n > 0) {
                size_t k = rng_below(&r, n);
                bool noisy = rng_below(&r, 4) == 0;
                extents_give(&x, blocks[k].first);
                for (uint32_t i = blocks[k].first; i < blocks[k].first + blocks[k].count; i++)
                    o.owner[i] = 0, o.noisy[i] = noisy && i < o.limit;
                if (noisy)
                    extents_quiet(&x, blocks[k].first, blocks[k].count, false);
                blocks[k] = blocks[--n];
            } else if (what == 17) {
                for (uint32_t i = 0; i < o.capacity; i++)
                    o.noisy[i] = false;
                extents_quiet(&x, 0, o.capacity, true);
            } else if (what == 18) {
                uint32_t limit = 1 + (uint32_t)rng_below(&r, o.capacity);
                /* As in the product: nothing is noisy any more when the limit changes. */
                for (uint32_t i = 0; i < o.capacity; i++)
                    o.noisy[i] = false;
                extents_quiet(&x, 0, o.capacity, true);
                extents_set_limit(&x, limit);
                o.limit = limit;
            }
            compare(&x, &o);
        }
        extents_done(&x);
    }
}

/* ---- the planner against trying every address ---- */

static double brute_cost(const struct place_block *b, size_t n, uint32_t from, uint32_t count)
{
    double cost = 0;
    uint32_t covered = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t lo = BASE_MAX(b[i].first, from),
                 hi = BASE_MIN(b[i].first + b[i].count, from + count);
        if (lo >= hi)
            continue;
        if (b[i].cost < 0)
            return -1;
        cost += b[i].cost;
        covered += hi - lo;
    }
    return covered == count ? cost : -1;
}

static double brute_best(const struct place_block *b, size_t n, uint32_t count)
{
    uint32_t end = n == 0 ? 0 : b[n - 1].first + b[n - 1].count;
    double best = -1;
    for (uint32_t at = 0; at + count <= end; at++) {
        double cost = brute_cost(b, n, at, count);
        if (cost >= 0 && (best < 0 || cost < best))
            best = cost;
    }
    return best;
}

static void planner_finds_the_cheapest_window(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 400; seed++) {
        struct rng r;
        struct place p = {0};
        rng_init(&r, seed);
        uint32_t at = 0;
        size_t n = 1 + rng_below(&r, 40);
        for (size_t i = 0; i < n; i++) {
            uint32_t count = 1 + (uint32_t)rng_below(&r, 9);
            uint64_t kind = rng_below(&r, 10);
            if (kind < 3)
                place_push(&p, at, count, POOL_NONE, 0);
            else if (kind < 5)
                place_push(&p, at, count, (uint32_t)i, PLACE_BARRIER);
            else
                place_push(&p, at, count, (uint32_t)i, (double)(1 + rng_below(&r, 30)));
            at += count;
        }
        for (int k = 0; k < 6; k++) {
            uint32_t want = 1 + (uint32_t)rng_below(&r, 14);
            bool from_top = rng_below(&r, 2) == 0;
            struct place_block before[200];
            size_t before_n = p.blocks_count, victims = p.victims_count;
            assert_true(before_n < 200);
            memcpy(before, p.blocks, before_n * sizeof(*before));
            double best = brute_best(before, before_n, want);
            uint32_t got = place_one(&p, want, from_top);
            if (best < 0) {
                assert_int_equal(got, POOL_NONE);
                continue;
            }
            assert_int_not_equal(got, POOL_NONE);
            double cost = brute_cost(before, before_n, got, want);
            if (cost != best)
                fail_msg("seed %lu: cost %g at %u, best is %g", (unsigned long)seed, cost, got,
                         best);
            /* Exactly what it lies on was evicted, and the list still tiles the space. */
            size_t lies_on = 0;
            for (size_t i = 0; i < before_n; i++)
                lies_on += before[i].owner != POOL_NONE && before[i].cost >= 0 &&
                           before[i].first < got + want && got < before[i].first + before[i].count;
            assert_int_equal(p.victims_count - victims, lies_on);
            uint32_t next = 0;
            for (size_t i = 0; i < p.blocks_count; i++) {
                assert_int_equal(p.blocks[i].first, next);
                next += p.blocks[i].count;
            }
            assert_int_equal(next, at);
        }
        place_done(&p);
    }
}

static void ties_go_to_the_asked_end(void **state)
{
    (void)state;
    struct place p = {0};
    place_push(&p, 0, 4, POOL_NONE, 0);
    place_push(&p, 4, 4, 1, PLACE_BARRIER);
    place_push(&p, 8, 8, POOL_NONE, 0);
    assert_int_equal(place_one(&p, 3, false), 0);
    assert_int_equal(place_one(&p, 3, true), 13);
    assert_int_equal(place_one(&p, 5, true), 8);
    assert_int_equal(place_one(&p, 2, false), POOL_NONE);
    assert_int_equal(place_one(&p, 1, false), 3);
    place_done(&p);
}

/* ---- the mapping ---- */

static size_t resident_pages(const struct pool *p, size_t from, size_t bytes)
{
    size_t pages = bytes / 4096, n = 0;
    unsigned char *vec = mem_alloc(pages);
    assert_int_equal(mincore(p->base + from, bytes, vec), 0);
    for (size_t i = 0; i < pages; i++)
        n += vec[i] & 1;
    free(vec);
    return n;
}

static void a_pool_is_populated_in_the_background_and_shrinks(void **state)
{
    (void)state;
    struct pool p;
    struct err e = {0};
    uint64_t bytes = 3 * (uint64_t)POOL_SLAB + 5 * POOL_GRANULE + 123;
    if (pool_open(&p, bytes, 2 * bytes, "tiers.hbm", &e) != ERR_OK)
        fail_msg("%s", e.msg);
    assert_int_equal((uintptr_t)p.base % (2u << 20), 0);
    assert_int_equal(p.extents.limit, bytes / POOL_GRANULE);
    assert_true(p.extents.capacity >= 2 * bytes / POOL_GRANULE - 1);
    pool_populate(&p, NULL);
    uint64_t until = clock_ns() + 60000000000ull;
    for (uint32_t slab = 0; slab < 4; slab++) {
        while (atomic_load(&p.slab_state[slab]) != SLAB_POPULATED && clock_ns() < until)
            usleep(1000);
    }
    pool_populate_stop(&p);
    size_t usable = (size_t)p.extents.limit * POOL_GRANULE;
    /* Old kernels cannot populate; then nothing is, and first use does it. */
    bool populates = atomic_load(&p.slab_state[0]) == SLAB_POPULATED;
    if (populates)
        assert_int_equal(resident_pages(&p, 0, usable), usable / 4096);
    memset(p.base, 7, usable);
    extents_take(&p.extents, p.extents.limit - 2, 2, 5);
    uint32_t top = p.extents.limit - 2;
    assert_int_equal(pool_resize(&p, POOL_SLAB, &e), ERR_OK);
    pool_trim(&p);
    assert_int_equal(resident_pages(&p, POOL_SLAB, (size_t)top * POOL_GRANULE - POOL_SLAB), 0);
    assert_int_equal(*pool_at(&p, top), 7); /* in use: kept */
    assert_int_equal(extents_find_low(&p.extents, POOL_SLAB / POOL_GRANULE + 1), POOL_NONE);
    extents_give(&p.extents, top);
    pool_trim(&p);
    assert_int_equal(resident_pages(&p, POOL_SLAB, usable - POOL_SLAB), 0);
    assert_int_equal(pool_resize(&p, bytes * 2, &e), ERR_OK);
    uint32_t at = extents_find_high(&p.extents, 1);
    assert_int_equal(at, bytes * 2 / POOL_GRANULE - 1);
    memset(pool_at(&p, at), 9, POOL_GRANULE);
    assert_int_equal(p.base[0], 7);
    assert_int_equal(pool_resize(&p, UINT64_MAX / 2, &e), ERR_NO_MEMORY);
    pool_close(&p);
}

static void impossible_pools_are_refused_with_numbers(void **state)
{
    (void)state;
    struct pool p;
    struct err e = {0};
    assert_int_equal(pool_open(&p, 1000, 0, "tiers.hbm", &e), ERR_INVALID);
    assert_string_equal(e.param, "tiers.hbm");
    assert_int_equal(pool_open(&p, (uint64_t)1 << 50, 0, "tiers.ddr", &e), ERR_NO_MEMORY);
    assert_non_null(strstr(e.msg, "tiers.ddr"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(extents_agree_with_the_oracle),
        cmocka_unit_test(planner_finds_the_cheapest_window),
        cmocka_unit_test(ties_go_to_the_asked_end),
        cmocka_unit_test(a_pool_is_populated_in_the_background_and_shrinks),
        cmocka_unit_test(impossible_pools_are_refused_with_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
