/* User expressions: what they mean, what is refused and where, and that fused and one by one agree.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "rdu/kernels/math.h"
#include "rdu/rdu.h"

#define N 1000

static const struct rdu_expr_field fields[] = {
    {"x", RDU_EXPR_F32, true},    {"y", RDU_EXPR_F32, true},  {"k", RDU_EXPR_I32, true},
    {"on", RDU_EXPR_BOOL, true},  {"t", RDU_EXPR_F32, false}, {"m", RDU_EXPR_I32, false},
    {"hot", RDU_EXPR_BOOL, false}};
static const struct rdu_expr_spec spec = {.fields = fields, .fields_count = BASE_COUNT(fields)};

struct data {
    float x[N], y[N], t, out[N];
    int32_t k[N], on[N], m, hot;
    const void *in[BASE_COUNT(fields)];
};

static struct data *data_open(uint64_t seed)
{
    struct data *d = mem_alloc(sizeof(*d));
    struct rng rng;
    rng_init(&rng, seed);
    for (int i = 0; i < N; i++) {
        d->x[i] = (float)(rng_f64(&rng) * 8 - 4);
        d->y[i] = (float)(rng_f64(&rng) * 2);
        d->k[i] = (int32_t)rng_below(&rng, 20) - 10;
        d->on[i] = (int32_t)rng_below(&rng, 2);
    }
    d->t = 0.7f;
    d->m = 3;
    d->hot = 1;
    const void *in[] = {d->x, d->y, d->k, d->on, &d->t, &d->m, &d->hot};
    memcpy(d->in, in, sizeof(in));
    return d;
}

static void run(const char *text, struct data *d, size_t n)
{
    struct rdu_expr *x = NULL;
    struct err e = {0};
    if (rdu_expr_open(text, strlen(text), &spec, &x, &e) != ERR_OK)
        fail_msg("%s: %s", text, e.msg);
    struct rdu_expr_scratch *s = rdu_expr_scratch_open(x, N);
    float other[N];
    rdu_expr_run(x, d->in, n, d->out, s);
    rdu_expr_run_unfused(x, d->in, n, other);
    if (memcmp(d->out, other, n * sizeof(float)) != 0)
        fail_msg("%s: fused and one by one differ", text);
    rdu_expr_scratch_close(&s);
    rdu_expr_close(&x);
}

static void operators_mean_what_they_say(void **state)
{
    struct data *d = data_open(1);
    run("x + y * 2 - -t", d, N);
    for (int i = 0; i < N; i++)
        assert_true(d->out[i] == d->x[i] + d->y[i] * 2.0f - -d->t);
    run("where(x > y and not on or hot, k % m, k / m)", d, N);
    for (int i = 0; i < N; i++)
        assert_true(d->out[i] == (float)(d->k[i] % d->m));
    run("if on then clamp(x, -1, 1) else abs(k)", d, N);
    for (int i = 0; i < N; i++)
        assert_true(d->out[i] == (d->on[i] ? fminf(fmaxf(d->x[i], -1), 1) : fabsf((float)d->k[i])));
    run("floor(x) + i32(y) # what is below", d, N);
    for (int i = 0; i < N; i++)
        assert_true(d->out[i] == floorf(d->x[i]) + (float)(int)d->y[i]);
    run("let a = x * x; let b = a + 1; 1 / b", d, N);
    for (int i = 0; i < N; i++)
        assert_true(d->out[i] == 1.0f / (d->x[i] * d->x[i] + 1.0f));
    free(d);
}

static void reductions_see_every_element(void **state)
{
    struct data *d = data_open(2);
    for (size_t n = 1; n <= N; n = n * 3 + 1) {
        float most = -INFINITY, least = INFINITY;
        double sum = 0;
        int above = 0;
        for (size_t i = 0; i < n; i++) {
            most = fmaxf(most, d->x[i]);
            least = fminf(least, d->x[i]);
            sum += (double)d->x[i];
            above += d->x[i] > 0;
        }
        run("max(x)", d, n);
        assert_true(d->out[n - 1] == most);
        run("min(x)", d, n);
        assert_true(d->out[0] == least);
        run("sum(x)", d, n);
        assert_true(fabs((double)d->out[0] - sum) < 1e-3);
        run("mean(x)", d, n);
        assert_true(fabs((double)d->out[0] - sum / (double)n) < 1e-5);
        run("count(x > 0)", d, n);
        assert_true(d->out[0] == (float)above);
        run("where(any(x > 0) and not all(x > 0), 1, 0)", d, n);
        assert_true(d->out[0] == (float)(above > 0 && above < (int)n));
    }
    free(d);
}

static void a_softmax_takes_three_passes_and_sums_to_one(void **state)
{
    struct data *d = data_open(3);
    const char *text =
        "let p = exp((x - max(x)) / t);\nlet q = p / sum(p);\nwhere(q < 0.001, 0, q)";
    run(text, d, N);
    double sum = 0, all = 0, most = -INFINITY;
    for (int i = 0; i < N; i++)
        most = fmax(most, (double)d->x[i]);
    for (int i = 0; i < N; i++)
        all += exp(((double)d->x[i] - most) / (double)d->t);
    for (int i = 0; i < N; i++) {
        double q = exp(((double)d->x[i] - most) / (double)d->t) / all;
        sum += (double)d->out[i];
        assert_true(fabs((double)d->out[i] - (q < 0.001 ? 0 : q)) < 1e-6 || fabs(q - 0.001) < 1e-6);
    }
    assert_true(sum > 0.5 && sum < 1.0001);
    struct rdu_expr *x = NULL;
    struct buf b = {0};
    assert_int_equal(rdu_expr_open(text, strlen(text), &spec, &x, NULL), ERR_OK);
    rdu_expr_print(x, &b);
    assert_non_null(strstr(b.data, "3 passes"));
    assert_non_null(strstr(b.data, "1 stored column"));
    assert_true(rdu_expr_uses(x, 0) && rdu_expr_uses(x, 4) && !rdu_expr_uses(x, 1));
    buf_done(&b);
    rdu_expr_close(&x);
    free(d);
}

static void the_result_may_replace_an_input(void **state)
{
    struct data *d = data_open(4);
    float want[N];
    run("x * sum(x) + max(x)", d, N);
    memcpy(want, d->out, sizeof(want));
    struct rdu_expr *x = NULL;
    assert_int_equal(rdu_expr_open("x * sum(x) + max(x)", 19, &spec, &x, NULL), ERR_OK);
    struct rdu_expr_scratch *s = rdu_expr_scratch_open(x, N);
    rdu_expr_run(x, d->in, N, d->x, s);
    assert_memory_equal(want, d->x, sizeof(want));
    rdu_expr_scratch_close(&s);
    rdu_expr_close(&x);
    free(d);
}

static void mistakes_are_named_with_line_and_column(void **state)
{
    static const struct {
        const char *text, *said;
    } bad[] = {
        {"", "line 1, column 1: the text ends where a value is due"},
        {"x +", "line 1, column 4: the text ends where a value is due"},
        {"x + utilty",
         "line 1, column 5: no field, `let` or function is called `utilty`; the fields are x, y"},
        {"x\n + on", "line 2, column 2: a bool is no number"},
        {"where(x, 1, 2)", "line 1, column 1: this is f32 where a condition (bool) is due"},
        {"clamp(x, 1)", "line 1, column 1: clamp takes 3 arguments, not 2"},
        {"max(x, y, t)", "line 1, column 1: max takes 1 argument or 2, not 3"},
        {"x % 2.0", "line 1, column 3: % takes i32 on both sides"},
        {"(x", "line 1, column 3: the text ends where ) is due"},
        {"x y", "line 1, column 3: `y` where an operator or the end is due"},
        {"let x1 = 2 x1", "line 1, column 12: `x1` where ; after a let is due"},
        {"let max = 2; max", "line 1, column 5: `max` is a word of the language"},
        {"x $ y", "line 1, column 3: a character that means nothing here (byte 0x24)"},
        {"3000000000", "line 1, column 1: 3000000000 does not fit i32"},
        {"1e99", "line 1, column 1: 1e99 is beyond f32"},
        {"12x", "line 1, column 1: a number ends in `x`"},
        {"if on then x", "line 1, column 13: the text ends where else is due"},
        {"on", "line 1, column 1: a bool is no number"},
        {"-on", "line 1, column 1: a bool has no negative"},
        {"# nothing", "line 1, column 10: the text ends"},
        {"x\xc3\xa4", "byte 0xc3"},
        {"max", "no field, `let` or function"},
    };
    for (size_t i = 0; i < BASE_COUNT(bad); i++) {
        struct rdu_expr *x = NULL;
        struct err e = {0};
        assert_int_equal(rdu_expr_open(bad[i].text, strlen(bad[i].text), &spec, &x, &e),
                         ERR_INVALID);
        assert_null(x);
        if (strstr(e.msg, bad[i].said) == NULL)
            fail_msg("`%s` said: %s", bad[i].text, e.msg);
    }
}

static void sizes_are_bounded(void **state)
{
    struct buf b = {0};
    struct rdu_expr *x = NULL;
    struct err e = {0};
    for (int i = 0; i < 200; i++)
        buf_puts(&b, "(");
    assert_int_equal(rdu_expr_open(b.data, b.len, &spec, &x, &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, "column 65: nested more than 64 deep"));
    buf_clear(&b);
    buf_puts(&b, "x");
    for (int i = 0; i < 600; i++)
        buf_printf(&b, "+%d.5", i);
    assert_int_equal(rdu_expr_open(b.data, b.len, &spec, &x, &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, "more than 512 operations"));
    while (b.len <= RDU_EXPR_TEXT_MAX)
        buf_puts(&b, " ");
    assert_int_equal(rdu_expr_open(b.data, b.len, &spec, &x, &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, "an expression of"));
    buf_clear(&b);
    buf_puts(&b, "x");
    for (int i = 0; i < 20; i++)
        buf_puts(&b, "-max(x*1");
    for (int i = 0; i < 20; i++)
        buf_puts(&b, ")");
    assert_int_equal(rdu_expr_open(b.data, b.len, &spec, &x, &e), ERR_INVALID);
    buf_done(&b);
}

/* ---- random ---------------------------------------------------------------------------------- */

static void random_number(struct rng *rng, struct buf *b, int depth);

static void random_condition(struct rng *rng, struct buf *b, int depth)
{
    static const char *const compare[] = {"<", "<=", ">", ">=", "==", "!="};
    if (depth > 4 || rng_below(rng, 4) == 0) {
        buf_puts(b, rng_below(rng, 2) ? "on" : "hot");
    } else if (rng_below(rng, 3) == 0) {
        buf_puts(b, "(not ");
        random_condition(rng, b, depth + 1);
        buf_puts(b, rng_below(rng, 2) ? " and " : " or ");
        random_condition(rng, b, depth + 1);
        buf_puts(b, ")");
    } else {
        buf_puts(b, "(");
        random_number(rng, b, depth + 1);
        buf_puts(b, compare[rng_below(rng, 6)]);
        random_number(rng, b, depth + 1);
        buf_puts(b, ")");
    }
}

static void random_call(struct rng *rng, struct buf *b, int depth)
{
    static const char *const one[] = {"max", "min", "sum",  "mean",  "abs", "sqrt",
                                      "exp", "log", "tanh", "floor", "rint"};
    static const char *const two[] = {"max", "min"};
    bool single = rng_below(rng, 3) > 0;
    buf_printf(b, "%s(", single ? one[rng_below(rng, BASE_COUNT(one))] : two[rng_below(rng, 2)]);
    random_number(rng, b, depth + 1);
    if (!single) {
        buf_puts(b, ",");
        random_number(rng, b, depth + 1);
    }
    buf_puts(b, ")");
}

static void random_number(struct rng *rng, struct buf *b, int depth)
{
    static const char *const leaf[] = {"x", "y", "k", "t", "m", "2", "0.5", "-3", "inf"};
    static const char *const oper[] = {"+", "-", "*", "/"};
    uint64_t pick = depth > 5 ? 0 : rng_below(rng, 6);
    if (pick == 0) {
        buf_puts(b, leaf[rng_below(rng, BASE_COUNT(leaf))]);
    } else if (pick == 1) {
        buf_puts(b, "where(");
        random_condition(rng, b, depth + 1);
        buf_puts(b, ",");
        random_number(rng, b, depth + 1);
        buf_puts(b, ",");
        random_number(rng, b, depth + 1);
        buf_puts(b, ")");
    } else if (pick < 4) {
        buf_puts(b, "(");
        random_number(rng, b, depth + 1);
        buf_puts(b, oper[rng_below(rng, 4)]);
        random_number(rng, b, depth + 1);
        buf_puts(b, ")");
    } else {
        random_call(rng, b, depth + 1);
    }
}

static void random_expressions_agree_with_one_by_one(void **state)
{
    struct data *d = data_open(5);
    for (uint64_t seed = 0; seed < 400; seed++) {
        struct rng rng;
        struct buf b = {0};
        rng_init(&rng, seed);
        random_number(&rng, &b, 0);
        print_message("%s", seed == 0 ? "seeds 0..399\n" : "");
        run(b.data, d, seed % 7 == 0 ? seed % N + 1 : N);
        buf_done(&b);
    }
    free(d);
}

static void random_bytes_never_crash(void **state)
{
    static const char *const words[] = {"x",  "(",   ")",      ",",      ";",   "let ",  "a",
                                        "=",  "if ", " then ", " else ", "max", "where", "1",
                                        ".5", "e9",  " and ",  "not ",   "<",   "on",    "\n",
                                        "#",  "-",   "%",      "\xff"};
    for (uint64_t seed = 0; seed < 3000; seed++) {
        struct rng rng;
        struct buf b = {0};
        struct rdu_expr *x = NULL;
        rng_init(&rng, seed);
        for (uint64_t i = rng_below(&rng, 30) + 1; i > 0; i--)
            buf_puts(&b, words[rng_below(&rng, BASE_COUNT(words))]);
        struct err e = {0};
        if (rdu_expr_open(b.data, b.len, &spec, &x, &e) != ERR_OK)
            assert_true(strncmp(e.msg, "line ", 5) == 0);
        rdu_expr_close(&x);
        buf_done(&b);
    }
}

static void logarithm_is_within_two_ulp(void **state)
{
    struct rng rng;
    rng_init(&rng, 11);
    for (int i = 0; i < 2000000; i++) {
        float x = rdu_float_of_bits((uint32_t)rng_below(&rng, 0x7f800000u));
        double want = log((double)x);
        double ulp = fmax(ldexp(1.0, ilogb(want == 0 ? 1e-30 : want) - 23), 1e-45);
        if (fabs((double)rdu_logf(x) - want) > 2 * ulp)
            fail_msg("log(%a) = %a, should be %a", (double)x, (double)rdu_logf(x), want);
    }
    assert_true(rdu_logf(0) == -INFINITY && rdu_logf(INFINITY) == INFINITY && rdu_logf(1) == 0);
    assert_true(isnan(rdu_logf(-1)) && isnan(rdu_logf(NAN)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operators_mean_what_they_say),
        cmocka_unit_test(reductions_see_every_element),
        cmocka_unit_test(a_softmax_takes_three_passes_and_sums_to_one),
        cmocka_unit_test(the_result_may_replace_an_input),
        cmocka_unit_test(mistakes_are_named_with_line_and_column),
        cmocka_unit_test(sizes_are_bounded),
        cmocka_unit_test(random_expressions_agree_with_one_by_one),
        cmocka_unit_test(random_bytes_never_crash),
        cmocka_unit_test(logarithm_is_within_two_ulp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
