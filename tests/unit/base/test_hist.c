/* Histogram quantiles and counts against sorted samples. */
#include "unit.h"

#include <math.h>

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

enum { N = 20000 };
static uint64_t samples[N];

/* Fill `h` and the sorted samples with values spread over all magnitudes. */
static void fill(struct hist *h, struct rng *r, unsigned bits)
{
    *h = (struct hist){0};
    for (size_t i = 0; i < N; i++) {
        samples[i] = rng_u64(r) >> (64 - bits) >> rng_below(r, bits);
        hist_add(h, samples[i]);
    }
    qsort(samples, N, sizeof(samples[0]), compare);
}

static void empty_histogram_answers_zero(void **state)
{
    struct hist h = {0};
    assert_int_equal(hist_quantile(&h, 0.5), 0);
    assert_int_equal(hist_count_below(&h, 1000), 0);
}

static void quantiles_are_within_an_eighth_of_the_sorted_samples(void **state)
{
    struct rng r;
    rng_init(&r, unit_seed());
    for (unsigned bits = 1; bits <= 40; bits++) {
        struct hist h;
        fill(&h, &r, bits);
        for (int i = 0; i <= 1000; i++) {
            double q = i / 1000.0;
            size_t rank = (size_t)ceil(q * N);
            uint64_t want = samples[rank > 0 ? rank - 1 : 0], got = hist_quantile(&h, q);
            /* 0 and 1 ns share the first bucket. */
            if (got < want || (got > 1 && (double)got > (double)want * 1.125))
                fail_msg("bits %u q %g: %llu for %llu", bits, q, (unsigned long long)got,
                         (unsigned long long)want);
        }
        assert_true(hist_quantile(&h, 1) == samples[N - 1]);
        assert_true(h.max_ns == samples[N - 1]);
        assert_int_equal(h.count, N);
    }
}

static void values_below_sixteen_are_exact(void **state)
{
    for (uint64_t v = 1; v < 16; v++) {
        struct hist h = {0};
        hist_add(&h, v);
        hist_add(&h, 1000000);
        assert_int_equal(hist_quantile(&h, 0.5), v);
    }
}

static void out_of_range_quantiles_and_values_are_clamped(void **state)
{
    struct hist h = {0};
    hist_add(&h, 0);
    hist_add(&h, UINT64_MAX);
    hist_add(&h, 5);
    assert_int_equal(hist_quantile(&h, -3), 1);
    assert_true(hist_quantile(&h, 7) == UINT64_MAX);
    assert_int_equal(h.count, 3);
}

static void counts_below_never_exceed_and_reach_the_true_count(void **state)
{
    struct rng r;
    rng_init(&r, unit_seed());
    struct hist h;
    fill(&h, &r, 40);
    uint64_t last = 0;
    for (unsigned p = 0; p < 42; p++) {
        /* Just below a power of two is a bucket edge: there the count is exact. */
        uint64_t edge = ((uint64_t)1 << p) - 1, exact = 0;
        while (exact < N && samples[exact] <= edge)
            exact++;
        /* 0 ns shares the bucket of 1 ns: p = 0 cannot tell them apart. */
        if (p > 0)
            assert_int_equal(hist_count_below(&h, edge), exact);
        uint64_t between = edge + (edge >> 1), true_count = 0;
        while (true_count < N && samples[true_count] <= between)
            true_count++;
        uint64_t got = hist_count_below(&h, between);
        assert_true(got <= true_count && got >= last);
        last = got;
    }
    assert_int_equal(hist_count_below(&h, UINT64_MAX), N);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(empty_histogram_answers_zero),
        cmocka_unit_test(quantiles_are_within_an_eighth_of_the_sorted_samples),
        cmocka_unit_test(values_below_sixteen_are_exact),
        cmocka_unit_test(out_of_range_quantiles_and_values_are_clamped),
        cmocka_unit_test(counts_below_never_exceed_and_reach_the_true_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
