/* Hashes and random numbers against published vectors, and the ranges of the latter. */
#include "unit.h"

#include <math.h>

static void hashes_match_the_published_vectors(void **state)
{
    assert_true(hash64_of("", 0, 0) == 0x2d06800538d394c2u);
    struct hash128 h = hash128_of("", 0, 0);
    assert_true(h.hi == 0x99aa06d3014798d8u && h.lo == 0x6001c324468d497fu);
    char hex[33];
    hash128_format(h, hex);
    assert_string_equal(hex, "99aa06d3014798d86001c324468d497f");
}

static void seed_and_content_both_matter(void **state)
{
    assert_true(hash64_of("ab", 2, 0) != hash64_of("ab", 2, 1));
    assert_true(hash64_of("ab", 2, 0) != hash64_of("ac", 2, 0));
    assert_false(hash128_equal(hash128_of("ab", 2, 0), hash128_of("ab", 2, 1)));
    assert_true(hash128_equal(hash128_of("ab", 2, 5), hash128_of("ab", 2, 5)));
    struct hash128 a = {.lo = 1, .hi = 2}, b = {.lo = 1, .hi = 3}, c = {.lo = 0, .hi = 2};
    assert_false(hash128_equal(a, b));
    assert_false(hash128_equal(a, c));
}

static void hex_round_trips_and_bad_hex_is_refused(void **state)
{
    struct rng r;
    rng_init(&r, unit_seed());
    for (int i = 0; i < 1000; i++) {
        struct hash128 h = {.lo = rng_u64(&r), .hi = rng_u64(&r) >> (i % 64)}, back;
        char hex[33];
        hash128_format(h, hex);
        assert_true(hash128_parse(hex, &back));
        assert_true(hash128_equal(h, back));
    }
    struct hash128 h = {.lo = 7};
    assert_true(hash128_parse("99AA06D3014798D86001C324468D497F", &h));
    assert_true(h.hi == 0x99aa06d3014798d8u);
    h.lo = 7;
    assert_false(hash128_parse("", &h));
    assert_false(hash128_parse("99aa06d3014798d86001c324468d497", &h));
    assert_false(hash128_parse("99aa06d3014798d86001c324468d497f0", &h));
    assert_false(hash128_parse("99aa06d3014798g86001c324468d497f", &h));
    assert_int_equal(h.lo, 7);
}

static void generator_matches_the_reference(void **state)
{
    /* First outputs of the authors' xoshiro256starstar.c for the state 1, 2, 3, 4. */
    const uint64_t want[] = {11520u, 0u, 1509978240u, 1215971899390074240u, 1216172134540287360u};
    struct rng r = {.s = {1, 2, 3, 4}};
    for (size_t i = 0; i < BASE_COUNT(want); i++)
        assert_true(rng_u64(&r) == want[i]);
    /* The authors' splitmix64.c for seed 0 fills the state. */
    rng_init(&r, 0);
    assert_true(r.s[0] == 0xe220a8397b1dcdafu && r.s[1] == 0x6e789e6aa1b965f4u);
    assert_true(r.s[2] == 0x06c45d188009454fu && r.s[3] == 0xf88bb8a8724c81ecu);
}

static void below_is_in_range_and_even(void **state)
{
    struct rng r;
    rng_init(&r, unit_seed());
    size_t counts[10] = {0};
    for (int i = 0; i < 100000; i++)
        counts[rng_below(&r, 10)]++;
    for (size_t i = 0; i < 10; i++)
        assert_true(counts[i] > 9300 && counts[i] < 10700); /* over 7 standard deviations */
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(rng_below(&r, 1), 0);
        uint64_t n = (rng_u64(&r) >> rng_below(&r, 64)) | 1;
        assert_true(rng_below(&r, n) < n);
    }
}

static void floats_are_in_the_unit_interval(void **state)
{
    struct rng r;
    rng_init(&r, unit_seed());
    double sum = 0;
    for (int i = 0; i < 100000; i++) {
        double v = rng_f64(&r);
        assert_true(v >= 0 && v < 1);
        sum += v;
    }
    assert_true(fabs(sum / 100000 - 0.5) < 0.01); /* over 10 standard deviations */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hashes_match_the_published_vectors),
        cmocka_unit_test(seed_and_content_both_matter),
        cmocka_unit_test(hex_round_trips_and_bad_hex_is_refused),
        cmocka_unit_test(generator_matches_the_reference),
        cmocka_unit_test(below_is_in_range_and_even),
        cmocka_unit_test(floats_are_in_the_unit_interval),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
