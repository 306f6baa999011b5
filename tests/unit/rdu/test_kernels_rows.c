/* Single-row leaves and math.h: accuracy against libm, every instruction set against the reference
 * bit for bit at sizes around every vector width, values that break careless code. */
#include "tests/unit/rdu/kernels_util.h"

static const uint32_t sizes[] = {1,  2,  3,  7,  8,  9,  15, 16,  17,  24,  31,  32,
                                 33, 47, 63, 64, 65, 96, 97, 127, 255, 576, 1023};

/* Distance in units of the last place of the exact value. */
static double ulps(float got, double exact)
{
    if (isinf(got) && fabs(exact) > 0x1.fffffefp+127)
        return 0;
    float near = fabsf((float)exact);
    double ulp = fmax((double)nextafterf(near, INFINITY) - (double)near, 0x1p-149);
    return fabs((double)got - exact) / ulp;
}

static void exp_and_tanh_stay_within_two_ulp(void **state)
{
    (void)state;
    double worst_exp = 0, worst_tanh = 0;
    for (uint64_t bits = 0; bits < (uint64_t)1 << 32; bits += 997) {
        float x = rdu_float_of_bits((uint32_t)bits);
        if (isnan(x)) {
            assert_true(isnan(rdu_expf(x)) && isnan(rdu_tanhf(x)));
            continue;
        }
        worst_exp = fmax(worst_exp, ulps(rdu_expf(x), exp((double)x)));
        worst_tanh = fmax(worst_tanh, ulps(rdu_tanhf(x), tanh((double)x)));
    }
    print_message("exp %.3f ulp, tanh %.3f ulp at worst\n", worst_exp, worst_tanh);
    assert_true(worst_exp <= 1.0);
    assert_true(worst_tanh <= 2.0);
    assert_true(rdu_expf(INFINITY) == INFINITY && rdu_expf(-INFINITY) == 0.0f);
    assert_true(rdu_expf(0.0f) == 1.0f && rdu_expf(-0.0f) == 1.0f);
    assert_true(rdu_tanhf(INFINITY) == 1.0f && rdu_tanhf(-INFINITY) == -1.0f);
    assert_true(signbit(rdu_tanhf(-0.0f)) && rdu_tanhf(0x1p-149f) == 0x1p-149f);
}

enum op {
    OP_NORM,
    OP_SILU,
    OP_GELU,
    OP_ERF,
    OP_CENTER,
    OP_ADD,
    OP_AXPY,
    OP_SCALE,
    OP_SOFTCAP,
    OPS
};
static const char *const op_names[OPS] = {"rms_norm", "silu_mul", "gelu_mul", "gelu",   "center",
                                          "add",      "axpy",     "scale",    "softcap"};

static void apply(const struct rdu_kernels *k, enum op op, const float *a, const float *b,
                  uint32_t n, float *y)
{
    switch (op) {
    case OP_NORM:
        k->rms_norm(a, b, 1e-5f, n, y);
        break;
    case OP_SILU:
        k->silu_mul(a, b, n, y);
        break;
    case OP_GELU:
        k->gelu_mul(a, b, n, y);
        break;
    case OP_ERF:
        k->gelu(a, n, y);
        break;
    case OP_CENTER:
        k->center(a, n, y);
        break;
    case OP_ADD:
        k->add(a, b, n, y);
        break;
    case OP_AXPY:
        k->axpy(b[0], a, n, y);
        break;
    case OP_SCALE:
        k->scale(a, b[0], n, y);
        break;
    case OP_SOFTCAP:
        k->softcap(a, 30.0f, n, y);
        break;
    case OPS:
        break;
    }
}

static float nasty(struct rng *r)
{
    static const float special[] = {INFINITY,  -INFINITY, NAN,     0.0f,   -0.0f,
                                    0x1p-149f, 1e38f,     -88.73f, 103.9f, -104.1f};
    return rng_below(r, 12) == 0 ? special[rng_below(r, BASE_COUNT(special))] : util_wide(r);
}

static void elementwise_gives_the_reference_bits(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 30);
    for (unsigned s = 0; s < BASE_COUNT(sizes) * 4; s++) {
        uint32_t n = sizes[s / 4];
        float *a = mem_array(n, sizeof *a), *b = mem_array(n, sizeof *b);
        for (uint32_t i = 0; i < n; i++) {
            a[i] = s % 4 == 3 ? nasty(&r) : util_wide(&r);
            b[i] = s % 4 == 2 ? nasty(&r) : util_wide(&r);
        }
        for (unsigned op = 0; op < OPS; op++) {
            struct util_guarded want = util_guarded_open(n);
            memcpy(want.data, b, n * sizeof *b);
            apply(&t->k[0], (enum op)op, a, b, n, want.data);
            for (unsigned i = 1; i < t->count; i++) {
                struct util_guarded got = util_guarded_open(n);
                memcpy(got.data, b, n * sizeof *b);
                apply(&t->k[i], (enum op)op, a, b, n, got.data);
                assert_true(util_guarded_intact(&got));
                for (uint32_t k = 0; k < n; k++)
                    if (!util_same(got.data[k], want.data[k]))
                        fail_msg(
                            "%s %s n %u seed %llu: element %u is %a, expected %a (inputs %a, %a)",
                            t->name[i], op_names[op], n, (unsigned long long)util_seed(), k,
                            (double)got.data[k], (double)want.data[k], (double)a[k], (double)b[k]);
                /* In place, onto the first operand. */
                if (op != OP_AXPY) {
                    memcpy(got.data, a, n * sizeof *a);
                    apply(&t->k[i], (enum op)op, got.data, b, n, got.data);
                    for (uint32_t k = 0; k < n; k++)
                        assert_true(util_same(got.data[k], want.data[k]));
                }
                util_guarded_close(&got);
            }
            util_guarded_close(&want);
        }
        free(a);
        free(b);
    }
}

static void elementwise_is_close_to_double(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 31);
    enum { N = 500 };
    float a[N], b[N], y[N];
    for (uint32_t i = 0; i < N; i++) {
        a[i] = util_unit(&r) * 12;
        b[i] = util_unit(&r) * 3;
    }
    double ss = 0;
    for (uint32_t i = 0; i < N; i++)
        ss += (double)a[i] * (double)a[i];
    t->k[0].rms_norm(a, b, 1e-5f, N, y);
    for (uint32_t i = 0; i < N; i++) {
        double exact = (double)a[i] / sqrt(ss / N + 1e-5) * (double)b[i];
        assert_true(fabs((double)y[i] - exact) <= 40 * 0x1p-24 * fabs(exact));
    }
    t->k[0].silu_mul(a, b, N, y);
    for (uint32_t i = 0; i < N; i++) {
        double exact = (double)a[i] / (1 + exp(-(double)a[i])) * (double)b[i];
        assert_true(fabs((double)y[i] - exact) <= 8 * 0x1p-24 * fabs(exact));
    }
    t->k[0].gelu_mul(a, b, N, y);
    for (uint32_t i = 0; i < N; i++) {
        double g = (double)a[i], inner = 0.7978845608028654 * (g + 0.044715 * g * g * g);
        double exact = 0.5 * g * (1 + tanh(inner)) * (double)b[i];
        /* 1 + tanh cancels for negative g: an absolute error of a few ulp of 1. */
        assert_true(fabs((double)y[i] - exact) <= 16 * 0x1p-24 * fabs(g * (double)b[i]) + 1e-12);
    }
    t->k[0].gelu(a, N, y);
    for (uint32_t i = 0; i < N; i++) {
        double x = (double)a[i], exact = 0.5 * x * (1 + erf(x / sqrt(2.0)));
        /* 1.5e-7 is the formula's own error, the rest rounding. */
        assert_true(fabs((double)y[i] - exact) <= fabs(x) * 5e-7);
    }
    double sum = 0;
    for (uint32_t i = 0; i < N; i++)
        sum += (double)a[i];
    t->k[0].center(a, N, y);
    for (uint32_t i = 0; i < N; i++)
        assert_true(fabs((double)y[i] - ((double)a[i] - sum / N)) <= 1e-5);
}

static void quantize_gives_the_reference_bits(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 32);
    for (unsigned s = 0; s < BASE_COUNT(sizes) * 6; s++) {
        uint32_t n = sizes[s / 6], blocks = (n + 31) / 32;
        float *x = mem_array(n, sizeof *x);
        for (uint32_t i = 0; i < n; i++) {
            x[i] = s % 6 == 0 ? nasty(&r) : util_unit(&r);
            if (s % 6 == 1)
                x[i] *= 0x1p-118f; /* around the limit below which d is 0 */
            else if (s % 6 == 2)
                x[i] = (float)((int)rng_below(&r, 255) - 127) * 0.5f; /* ties */
            else if (s % 6 == 3)
                x[i] *= 3e38f;
        }
        int8_t want_q[1024 + 64], got_q[1024 + 64];
        float want_d[64], want_s[64];
        memset(want_q, 0x55, sizeof want_q);
        t->k[0].quantize(x, n, want_q, want_d, want_s);
        for (unsigned i = 0; i < t->count; i++) {
            struct util_guarded d = util_guarded_open(blocks), sums = util_guarded_open(blocks);
            memset(got_q, 0x55, sizeof got_q);
            t->k[i].quantize(x, n, got_q, d.data, sums.data);
            if (memcmp(want_q, got_q, sizeof got_q) != 0)
                fail_msg("%s n %u seed %llu: q differs", t->name[i], n,
                         (unsigned long long)util_seed());
            for (uint32_t b = 0; b < blocks; b++)
                assert_true(util_same(d.data[b], want_d[b]) && util_same(sums.data[b], want_s[b]));
            assert_true(util_guarded_intact(&d) && util_guarded_intact(&sums));
            util_guarded_close(&d);
            util_guarded_close(&sums);
        }
        for (uint32_t i = n; i < blocks * 32; i++)
            assert_int_equal(want_q[i], 0);
        free(x);
    }
}

static void quantize_follows_its_rule(void **state)
{
    struct util_tables *t = *state;
    for (unsigned i = 0; i < t->count; i++) {
        float x[32] = {0}, d, s;
        int8_t q[32];
        x[0] = -127.0f;
        x[1] = 0.5f; /* tie: to even */
        x[2] = 1.5f;
        x[3] = NAN;
        t->k[i].quantize(x, 32, q, &d, &s);
        assert_true(d == 1.0f && s == -125.0f);
        assert_true(q[0] == -127 && q[1] == 0 && q[2] == 2 && q[3] == 0);
        for (unsigned k = 0; k < 32; k++)
            x[k] = NAN;
        t->k[i].quantize(x, 32, q, &d, &s);
        assert_true(d == 0.0f && s == 0.0f && q[0] == 0);
        x[5] = 0x1.fffffep-120f;
        t->k[i].quantize(x, 32, q, &d, &s);
        assert_true(d == 0.0f && q[5] == 0);
        x[5] = 0x1p-119f;
        t->k[i].quantize(x, 32, q, &d, &s);
        assert_true(d > 0.0f && q[5] == 127);
        x[5] = INFINITY;
        t->k[i].quantize(x, 32, q, &d, &s);
        assert_true(isinf(d) && q[5] == 0);
    }
}

static void rope_gives_the_reference_bits(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 33);
    for (uint32_t half = 1; half <= 70; half++) {
        uint32_t rot = 2 * half, head_dim = rot + (half % 3) * 4, heads = 1 + half % 4;
        size_t n = (size_t)heads * head_dim;
        float *x = mem_array(n, sizeof *x), *c = mem_array(half, sizeof *c),
              *s = mem_array(half, sizeof *s);
        for (size_t i = 0; i < n; i++)
            x[i] = util_wide(&r);
        for (uint32_t i = 0; i < half; i++) {
            double angle = rng_f64(&r) * 7;
            c[i] = (float)cos(angle);
            s[i] = (float)sin(angle);
        }
        for (unsigned style = 0; style < 2; style++) {
            struct util_guarded want = util_guarded_open(n), got = util_guarded_open(n);
            memcpy(want.data, x, n * sizeof *x);
            t->k[0].rope(want.data, c, s, heads, head_dim, rot, (enum rdu_rope)style);
            /* The reference itself: head 0, pair 0. */
            float a = x[0], b = style == RDU_ROPE_PAIRS ? x[1] : x[half];
            assert_true(want.data[0] == fmaf(a, c[0], -(b * s[0])));
            for (unsigned i = 1; i < t->count; i++) {
                memcpy(got.data, x, n * sizeof *x);
                t->k[i].rope(got.data, c, s, heads, head_dim, rot, (enum rdu_rope)style);
                assert_memory_equal(got.data, want.data, n * sizeof *x);
                assert_true(util_guarded_intact(&got));
            }
            util_guarded_close(&want);
            util_guarded_close(&got);
        }
        free(x);
        free(c);
        free(s);
    }
}

static void argmax_takes_the_first_largest_and_no_nan(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 34);
    for (unsigned round = 0; round < 400; round++) {
        uint32_t n = sizes[round % BASE_COUNT(sizes)];
        float *x = mem_array(n, sizeof *x);
        for (uint32_t i = 0; i < n; i++) {
            x[i] = (float)((int)rng_below(&r, 9) - 4);
            if (round % 5 == 0 && rng_below(&r, 3) != 0)
                x[i] = NAN;
            if (round % 11 == 0)
                x[i] = rng_below(&r, 2) ? NAN : -INFINITY;
        }
        uint32_t best = 0;
        for (uint32_t i = 1; i < n; i++)
            if (!isnan(x[i]) && (isnan(x[best]) || x[i] > x[best]))
                best = i;
        for (unsigned i = 0; i < t->count; i++) {
            uint32_t idx = UINT32_MAX;
            float max = 0;
            t->k[i].argmax(x, n, &idx, &max);
            assert_int_equal(idx, best);
            assert_true(util_same(max, x[best]));
        }
        free(x);
    }
}

int main(void)
{
    struct util_tables tables;
    util_tables_init(&tables);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_and_tanh_stay_within_two_ulp),
        cmocka_unit_test_prestate(elementwise_gives_the_reference_bits, &tables),
        cmocka_unit_test_prestate(elementwise_is_close_to_double, &tables),
        cmocka_unit_test_prestate(quantize_gives_the_reference_bits, &tables),
        cmocka_unit_test_prestate(quantize_follows_its_rule, &tables),
        cmocka_unit_test_prestate(rope_gives_the_reference_bits, &tables),
        cmocka_unit_test_prestate(argmax_takes_the_first_largest_and_no_nan, &tables),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
