/* What the next turn of a conversation wants: learnt, judged, and silent while it is wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "daemon/markov.h"

static void a_path_is_learnt_and_foretold(void **state)
{
    struct markov *m = markov_open(4);
    struct markov_stats st;
    (void)state;
    /* 0 -> 1 -> 2, then the end. */
    for (uint64_t c = 1; c <= 10; c++) {
        uint32_t at0 = markov_turn(m, c, 0), at1 = markov_turn(m, c, 1), at2 = markov_turn(m, c, 2);
        assert_int_equal(at0, c > 4 ? 1 : MARKOV_NONE);
        assert_int_equal(at1, c > 4 ? 2 : MARKOV_NONE);
        assert_int_equal(at2, MARKOV_NONE);
    }
    markov_stats(m, &st);
    assert_int_equal(st.foretold, 12);
    assert_int_equal(st.right, 12);
    markov_close(&m);
    assert_null(m);
}

static void staying_is_not_foretold(void **state)
{
    struct markov *m = markov_open(2);
    (void)state;
    for (int turn = 0; turn < 40; turn++)
        assert_int_equal(markov_turn(m, 7, 1), MARKOV_NONE);
    markov_close(&m);
}

/* It learns 0 -> 1, then the world turns: after some wrong words it is silent, and once its counts have
 * turned too it speaks again. */
static void it_falls_silent_when_wrong_and_speaks_again_when_right(void **state)
{
    struct markov *m = markov_open(3);
    struct markov_stats st;
    uint64_t c = 1;
    int silent = 0;
    (void)state;
    for (int i = 0; i < 100; i++, c++) {
        (void)markov_turn(m, c, 0);
        (void)markov_turn(m, c, 1);
    }
    markov_stats(m, &st);
    assert_true(st.on);
    for (int i = 0; i < 90; i++, c++) {
        silent += markov_turn(m, c, 0) == MARKOV_NONE;
        (void)markov_turn(m, c, 2);
    }
    markov_stats(m, &st);
    assert_false(st.on);
    assert_true(silent > 20);
    for (int i = 0; i < 200; i++, c++) {
        (void)markov_turn(m, c, 0);
        (void)markov_turn(m, c, 2);
    }
    markov_stats(m, &st);
    assert_true(st.on);
    assert_int_equal(markov_turn(m, c, 0), 2);
    markov_close(&m);
}

/* No pattern: at no time is more than a little said, and precision is known. */
static void without_a_pattern_it_says_little(void **state)
{
    struct markov *m = markov_open(10);
    struct markov_stats st;
    struct rng r;
    int said = 0;
    (void)state;
    rng_init(&r, 5);
    for (uint64_t i = 0; i < 5000; i++)
        said += markov_turn(m, 1 + rng_below(&r, 50), (uint32_t)rng_below(&r, 10)) != MARKOV_NONE;
    markov_stats(m, &st);
    assert_true(said < 100);
    assert_true(st.right <= st.foretold);
    markov_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_path_is_learnt_and_foretold),
        cmocka_unit_test(staying_is_not_foretold),
        cmocka_unit_test(it_falls_silent_when_wrong_and_speaks_again_when_right),
        cmocka_unit_test(without_a_pattern_it_says_little),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
