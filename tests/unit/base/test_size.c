/* Sizes: what people write, up to the limits of 64 bits, and how sizes are shown. */
#include "unit.h"

static void sizes_with_units_are_read(void **state)
{
    const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {
        {"0", 0},
        {"4096", 4096},
        {"4096 B", 4096},
        {"1KiB", 1024},
        {"512MiB", 512ull << 20},
        {"512 MiB", 512ull << 20},
        {" 512mib ", 512ull << 20},
        {"1.5 GiB", 3ull << 29},
        {"0.001KiB", 1},
        {"0.1TiB", 109951162777},
        {"2TiB", 2ull << 40},
        {"18446744073709551615", UINT64_MAX},
        {"16777215TiB", 16777215ull << 40},
        {"1.00000000000000000000000000001KiB", 1024},
    };
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        uint64_t bytes = 7;
        struct err e;
        if (size_parse(cases[i].text, &bytes, &e) != ERR_OK)
            fail_msg("'%s': %s", cases[i].text, e.msg);
        if (bytes != cases[i].bytes)
            fail_msg("'%s' gave %llu", cases[i].text, (unsigned long long)bytes);
    }
}

static void what_is_no_size_is_refused_with_a_cure(void **state)
{
    const struct {
        const char *text, *part;
    } cases[] = {
        {"", "not a size"},
        {"GiB", "not a size"},
        {"-1", "not a size"},
        {"+1", "not a size"},
        {"1.GiB", "no digits"},
        {"1.5", "fraction of a byte"},
        {"1.5B", "fraction of a byte"},
        {"4GB", "GiB"},
        {"4 Gi B", "unknown unit"},
        {"0x10", "unknown unit"},
        {"1e9", "unknown unit"},
        {"1,5GiB", "unknown unit"},
        {"18446744073709551616", "64 bits"},
        {"16777216TiB", "64 bits"},
        {"99999999999999999999999GiB", "64 bits"},
    };
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        uint64_t bytes = 7;
        struct err e;
        assert_int_equal(size_parse(cases[i].text, &bytes, &e), ERR_INVALID);
        assert_int_equal(bytes, 7);
        if (strstr(e.msg, cases[i].part) == NULL)
            fail_msg("'%s': message '%s' lacks '%s'", cases[i].text, e.msg, cases[i].part);
    }
}

static void sizes_are_shown_with_one_digit_and_the_fitting_unit(void **state)
{
    const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        {0, "0 B"},
        {1023, "1023 B"},
        {1024, "1.0 KiB"},
        {149946368, "143.0 MiB"},
        {(1ull << 20) - 1, "1.0 MiB"}, /* not "1024.0 KiB" */
        {3ull << 29, "1.5 GiB"},
        {5ull << 50, "5.0 PiB"},
        {UINT64_MAX, "16.0 EiB"},
    };
    for (size_t i = 0; i < BASE_COUNT(cases); i++) {
        char buf[32];
        assert_string_equal(size_format(cases[i].bytes, buf, sizeof(buf)), cases[i].text);
    }
    char tiny[4];
    assert_string_equal(size_format(1023, tiny, sizeof(tiny)), "102");
}

static void every_whole_kibibyte_survives_a_round_trip(void **state)
{
    struct rng r;
    rng_init(&r, unit_seed());
    for (int i = 0; i < 10000; i++) {
        uint64_t kib = rng_u64(&r) >> (10 + rng_below(&r, 54)), bytes;
        char text[40];
        (void)snprintf(text, sizeof(text), "%lluKiB", (unsigned long long)kib);
        assert_int_equal(size_parse(text, &bytes, NULL), ERR_OK);
        assert_true(bytes == kib << 10);
    }
}

static void checked_arithmetic_refuses_overflow(void **state)
{
    size_t v = 5;
    assert_true(size_mul(SIZE_MAX / 2, 2, &v));
    assert_false(size_mul(SIZE_MAX / 2 + 1, 2, &v));
    assert_true(size_add(SIZE_MAX - 1, 1, &v));
    assert_false(size_add(SIZE_MAX, 1, &v));
    assert_true(size_align(0, 64, &v) && v == 0);
    assert_true(size_align(1, 64, &v) && v == 64);
    assert_true(size_align(64, 64, &v) && v == 64);
    assert_true(size_align(SIZE_MAX - 63, 64, &v) && v == SIZE_MAX - 63);
    v = 5;
    assert_false(size_align(SIZE_MAX - 62, 64, &v));
    assert_int_equal(v, 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_with_units_are_read),
        cmocka_unit_test(what_is_no_size_is_refused_with_a_cure),
        cmocka_unit_test(sizes_are_shown_with_one_digit_and_the_fitting_unit),
        cmocka_unit_test(every_whole_kibibyte_survives_a_round_trip),
        cmocka_unit_test(checked_arithmetic_refuses_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
