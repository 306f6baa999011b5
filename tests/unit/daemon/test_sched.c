/* The scheduler with a fake clock: turns, loads that fit or do not, the starvation bound, priorities. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "daemon/sched.h"

#define MS 1000000ull
#define NONE UINT32_MAX

static struct sched_view view(const struct sched_base *b, uint32_t n, uint64_t room)
{
    return (struct sched_view){.bases = b, .count = n, .last = NONE, .room_bytes = room, .max_defer_ns = 500 * MS};
}

static void nothing_runnable_names_none(void **state)
{
    struct sched_base b[2] = {{.resident_bytes = 10}, {.resident_bytes = 10, .runnable = 1, .open = true}};
    struct sched_view v = view(b, 2, 100);
    assert_int_equal(sched_next(&v, 1), NONE);
    assert_true(sched_wake_ns(&v, 1) == UINT64_MAX);
}

static void resident_bases_take_turns(void **state)
{
    struct sched_base b[3] = {{.resident_bytes = 10, .runnable = 1, .served_ns = 5},
                              {.resident_bytes = 10, .runnable = 4, .served_ns = 3},
                              {.resident_bytes = 10, .runnable = 1, .served_ns = 4}};
    struct sched_view v = view(b, 3, 100);
    uint32_t served[3] = {0};
    for (uint64_t now = 10; now < 310; now++) {
        uint32_t i = sched_next(&v, now);
        assert_true(i < 3);
        served[i]++;
        b[i].served_ns = b[i].waiting_ns = now;
        v.last = i;
    }
    assert_int_equal(served[0], 100);
    assert_int_equal(served[1], 100);
    assert_int_equal(served[2], 100);
}

static void a_load_that_fits_starts_at_once(void **state)
{
    struct sched_base b[2] = {{.resident_bytes = 40, .runnable = 2, .served_ns = 100},
                              {.missing_bytes = 50, .runnable = 1, .waiting_ns = 90}};
    struct sched_view v = view(b, 2, 100);
    assert_int_equal(sched_next(&v, 100), 1);
}

static void a_load_that_evicts_others_waits_its_time_and_no_longer(void **state)
{
    struct sched_base b[2] = {{.resident_bytes = 60, .runnable = 2},
                              {.missing_bytes = 50, .runnable = 1, .waiting_ns = 1000 * MS}};
    struct sched_view v = view(b, 2, 100);
    b[0].served_ns = b[0].waiting_ns = 1000 * MS;
    assert_int_equal(sched_next(&v, 1001 * MS), 0);
    assert_true(sched_wake_ns(&v, 1001 * MS) == 1500 * MS);
    b[0].served_ns = b[0].waiting_ns = 1499 * MS;
    assert_int_equal(sched_next(&v, 1499 * MS), 0);
    assert_int_equal(sched_next(&v, 1500 * MS), 1);
}

static void a_load_waits_for_nobody_when_nobody_runs(void **state)
{
    struct sched_base b[2] = {{.resident_bytes = 60}, {.missing_bytes = 90, .runnable = 1, .waiting_ns = 7}};
    struct sched_view v = view(b, 2, 100);
    assert_int_equal(sched_next(&v, 8), 1);
}

static void priority_goes_first_but_starves_nobody(void **state)
{
    struct sched_base b[2] = {{.resident_bytes = 10, .runnable = 1, .priority = 9},
                              {.resident_bytes = 10, .runnable = 1, .priority = 0, .waiting_ns = 100 * MS}};
    struct sched_view v = view(b, 2, 100);
    uint64_t longest = 0, last = 100 * MS;
    uint32_t low = 0;
    for (uint64_t now = 100 * MS; now < 5000 * MS; now += 3 * MS) {
        uint32_t i = sched_next(&v, now);
        b[i].served_ns = b[i].waiting_ns = now;
        if (i == 1) {
            longest = BASE_MAX(longest, now - last);
            last = now;
            low++;
        }
    }
    assert_true(longest <= 510 * MS);
    assert_in_range(low, 8, 12);
}

/* Three bases, room for one: each keeps what it loaded for half of the bound, then the next comes in. */
static void what_was_loaded_is_used_before_it_goes(void **state)
{
    struct sched_base b[3] = {{.missing_bytes = 60, .runnable = 1}, {.missing_bytes = 60, .runnable = 1},
                              {.missing_bytes = 60, .runnable = 1}};
    struct sched_view v = view(b, 3, 100);
    uint32_t loads = 0, steps = 0;
    for (uint64_t now = 1000 * MS; now < 11000 * MS; now += 5 * MS) {
        uint32_t i = sched_next(&v, now);
        if (i == NONE)
            continue;
        steps++;
        if (b[i].missing_bytes) {
            for (int k = 0; k < 3; k++) {
                b[k].missing_bytes = k == (int)i ? 0 : 60;
                b[k].resident_bytes = k == (int)i ? 60 : 0;
            }
            loads++;
            now += 100 * MS;
            b[i].loaded_ns = now;
        }
        b[i].served_ns = b[i].waiting_ns = now;
    }
    assert_in_range(loads, 20, 40); /* 350 ms a turn, load included; it would be hundreds without */
    assert_true(steps > 20 * loads);
}

/* Loads base i: what was served longest ago goes until it fits. */
static void make_room(struct sched_base *b, int n, uint32_t i, uint64_t room)
{
    for (;;) {
        uint64_t used = b[i].missing_bytes;
        int oldest = -1;
        for (int k = 0; k < n; k++) {
            used += b[k].resident_bytes;
            if (k != (int)i && b[k].resident_bytes && (oldest < 0 || b[k].served_ns < b[oldest].served_ns))
                oldest = k;
        }
        if (used <= room)
            break;
        b[oldest].missing_bytes = b[oldest].resident_bytes;
        b[oldest].resident_bytes = 0;
    }
    b[i].resident_bytes += b[i].missing_bytes;
    b[i].missing_bytes = 0;
}

/* Random schedules: no runnable base is ever left longer than the bound times the bases, plus its load. */
static void no_base_starves_in_random_schedules(void **state)
{
    for (uint64_t seed = 1; seed <= 200; seed++) {
        struct rng rng;
        struct sched_base b[5] = {0};
        uint64_t now = 0, room = 100;
        rng_init(&rng, seed);
        for (int i = 0; i < 5; i++)
            b[i] = (struct sched_base){.runnable = 1, .missing_bytes = 20 + rng_below(&rng, 60),
                                       .priority = (int32_t)rng_below(&rng, 3)};
        struct sched_view v = view(b, 5, room);
        for (int step = 0; step < 3000; step++) {
            uint32_t i = sched_next(&v, now);
            if (i == NONE) {
                uint64_t wake = sched_wake_ns(&v, now);
                assert_true(wake != UINT64_MAX && wake >= now);
                now = BASE_MAX(wake, now + 1);
                continue;
            }
            if (b[i].missing_bytes) { /* loads: evicts others, takes time */
                make_room(b, 5, i, room);
                now += 100 * MS;
                b[i].loaded_ns = now;
            }
            now += (1 + rng_below(&rng, 10)) * MS;
            b[i].served_ns = b[i].waiting_ns = now;
            for (int k = 0; k < 5; k++)
                if (now - b[k].waiting_ns > 5 * (500 + 120) * MS)
                    fail_msg("seed %llu: base %d waits %llu ms", (unsigned long long)seed, k,
                             (unsigned long long)((now - b[k].waiting_ns) / MS));
        }
    }
}

static void prompts_take_less_beside_decoding(void **state)
{
    assert_int_equal(sched_prefill_budget(256, 0, NULL), 256);
    assert_int_equal(sched_prefill_budget(256, 3, NULL), 64);
    assert_int_equal(sched_prefill_budget(64, 3, NULL), 32);
    /* A step of 10 ms may become 18: 8 ms at half a millisecond each. */
    struct sched_pace pace = {0};
    sched_note_step(&pace, 0.128, 0, 256);
    sched_note_step(&pace, 0.010, 16, 0);
    assert_int_equal(sched_prefill_budget(256, 16, &pace), 16);
    assert_int_equal(sched_prefill_budget(256, 0, &pace), 256);
    /* In small chunks tokens prove dearer; at last the least is taken. */
    for (int i = 0; i < 50; i++)
        sched_note_step(&pace, 0.026, 16, 16);
    assert_in_range(sched_prefill_budget(256, 16, &pace), SCHED_PREFILL_MIN, 9);
    for (int i = 0; i < 50; i++)
        sched_note_step(&pace, 1, 16, 8);
    assert_int_equal(sched_prefill_budget(256, 16, &pace), SCHED_PREFILL_MIN);
    assert_int_equal(sched_prefill_budget(4, 16, &pace), 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_runnable_names_none),
        cmocka_unit_test(resident_bases_take_turns),
        cmocka_unit_test(a_load_that_fits_starts_at_once),
        cmocka_unit_test(a_load_that_evicts_others_waits_its_time_and_no_longer),
        cmocka_unit_test(a_load_waits_for_nobody_when_nobody_runs),
        cmocka_unit_test(priority_goes_first_but_starves_nobody),
        cmocka_unit_test(what_was_loaded_is_used_before_it_goes),
        cmocka_unit_test(no_base_starves_in_random_schedules),
        cmocka_unit_test(prompts_take_less_beside_decoding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
