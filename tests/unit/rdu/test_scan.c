/* Loops over a table: the queries give what plain C gives, bit for bit, however they are laid out,
 * fused and split over sockets; fusing keeps to its rules; the gate refuses what does not pay. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <string.h>

#include "rdu/bench/work.h"

static const size_t sizes[] = {1, 7, 16, 17, 511, 513, 4095, 4096, 4097, 21001};

/* ---- oracle: rule 13, one row after the other ------------------------------------------------ */

struct oracle {
    float lane[16];
    double sum;
    size_t rows;
};

static void oracle_end_chunk(struct oracle *o)
{
    for (int half = 8; half > 0; half /= 2) {
        for (int j = 0; j < half; j++)
            o->lane[j] = o->lane[j] + o->lane[j + half];
    }
    o->sum += (double)o->lane[0];
    memset(o->lane, 0, sizeof(o->lane));
}

static void oracle_add(struct oracle *o, bool guard, float v)
{
    if (guard)
        o->lane[o->rows % 16] += v;
    if (++o->rows % SCAN_CHUNK == 0)
        oracle_end_chunk(o);
}

static double oracle_sum(struct oracle *o)
{
    if (o->rows % SCAN_CHUNK != 0)
        oracle_end_chunk(o);
    return o->sum;
}

static float real(const struct bench_table *t, int column, size_t i)
{
    float v;
    memcpy(&v, (const char *)t->source[column].data + i * t->source[column].stride, sizeof(v));
    return v;
}

static int32_t whole(const struct bench_table *t, int column, size_t i)
{
    int32_t v;
    memcpy(&v, (const char *)t->source[column].data + i * t->source[column].stride, sizeof(v));
    return v;
}

static int small(const struct bench_table *t, int column, size_t i)
{
    return *((const int8_t *)t->source[column].data + i * t->source[column].stride);
}

static void oracle_q6(const struct bench_table *t, double *ret)
{
    struct oracle o = {0};
    for (size_t i = 0; i < t->n; i++) {
        float discount = real(t, LINE_DISCOUNT, i);
        int32_t day = whole(t, LINE_SHIP_DAY, i);
        oracle_add(&o,
                   day >= Q6_DAY_FROM && day < Q6_DAY_TO && discount > Q6_DISCOUNT_FROM &&
                       discount < Q6_DISCOUNT_TO && real(t, LINE_QUANTITY, i) < Q6_QUANTITY,
                   real(t, LINE_PRICE, i) * discount);
    }
    ret[0] = oracle_sum(&o);
}

static void oracle_q1(const struct bench_table *t, double *ret)
{
    for (int k = 0; k < Q1_KEYS; k++) {
        struct oracle o[Q1_VALUES] = {0};
        for (size_t i = 0; i < t->n; i++) {
            bool mine = small(t, LINE_FLAG, i) * 2 + small(t, LINE_STATUS, i) == k &&
                        whole(t, LINE_SHIP_DAY, i) <= Q1_DAY;
            float price = real(t, LINE_PRICE, i), discount = real(t, LINE_DISCOUNT, i);
            float disc_price = price * (1.0f - discount);
            oracle_add(&o[Q1_QUANTITY], mine, real(t, LINE_QUANTITY, i));
            oracle_add(&o[Q1_PRICE], mine, price);
            oracle_add(&o[Q1_DISC_PRICE], mine, disc_price);
            oracle_add(&o[Q1_CHARGE], mine, disc_price * (1.0f + real(t, LINE_TAX, i)));
            oracle_add(&o[Q1_DISCOUNT], mine, discount);
            oracle_add(&o[Q1_COUNT], mine, 1.0f);
        }
        for (int v = 0; v < Q1_VALUES; v++)
            ret[k * Q1_VALUES + v] = oracle_sum(&o[v]);
    }
}

/* ---- queries --------------------------------------------------------------------------------- */

static struct scan_graph *checked(struct scan_graph *g)
{
    struct err e = {0};
    if (scan_verify(g, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    return g;
}

static void expect_sums(const struct scan_graph *g, uint32_t elem, const struct bench_table *t,
                        const double *want, size_t count)
{
    struct scan_exec *x = scan_exec_open(g, t->source, t->n);
    for (uint32_t sockets = 1; sockets <= 16; sockets++) {
        scan_run(x, sockets);
        for (size_t i = 0; i < count; i++) {
            if (memcmp(&scan_sums(x, elem)[i], &want[i], sizeof(double)) != 0)
                fail_msg(
                    "%s, %zu rows, %u sockets, %u loops, stride %zu: sum %zu is %.17g, not %.17g",
                    g->name, t->n, sockets, g->loops, t->source[0].stride, i, scan_sums(x, elem)[i],
                    want[i]);
        }
    }
    scan_exec_close(&x);
}

static void expect_query(bool q6, size_t n, bool columns)
{
    struct bench_table t;
    uint32_t elem;
    double want[Q1_KEYS * Q1_VALUES];
    bench_lineitem_fill(&t, n, columns, n * 2 + columns);
    struct scan_graph *g = checked(q6 ? bench_q6_graph(&elem) : bench_q1_graph(&elem));
    struct scan_graph *fused = checked(scan_fuse(g, NULL));
    assert_int_equal(fused->loops, 1);
    (q6 ? oracle_q6 : oracle_q1)(&t, want);
    expect_sums(g, elem, &t, want, q6 ? 1 : BASE_COUNT(want));
    expect_sums(fused, elem, &t, want, q6 ? 1 : BASE_COUNT(want));
    scan_graph_close(&fused);
    scan_graph_close(&g);
    bench_table_done(&t);
}

static void queries_give_what_plain_c_gives_at_all_levels_and_socket_counts(void **state)
{
    for (size_t i = 0; i < BASE_COUNT(sizes); i++) {
        for (int columns = 0; columns < 2; columns++) {
            expect_query(true, sizes[i], columns);
            expect_query(false, sizes[i], columns);
        }
    }
}

static void both_builds_of_the_reducers_agree(void **state)
{
    struct scan_ops base;
    const struct scan_ops *best = scan_ops();
    scan_ops_base(&base);
    enum { N = 777, KEYS = 5 };
    static float v[SCAN_VALUES][N], acc[2][16 * (KEYS + 1) * SCAN_VALUES];
    static int32_t key[N], mask[N], slot[2][N];
    struct rng rng;
    rng_init(&rng, 5);
    for (int i = 0; i < N; i++) {
        key[i] = (int32_t)rng_below(&rng, KEYS + 3) - 1;
        mask[i] = (int32_t)rng_below(&rng, 2);
        for (int k = 0; k < SCAN_VALUES; k++)
            v[k][i] = (float)(rng_f64(&rng) * 100 - 50);
    }
    for (uint32_t values = 1; values <= SCAN_VALUES; values++) {
        const float *value[SCAN_VALUES];
        for (uint32_t k = 0; k < values; k++)
            value[k] = v[k];
        memset(acc, 0, sizeof(acc));
        base.slots(slot[0], key, mask, KEYS, N);
        best->slots(slot[1], key, mask, KEYS, N);
        assert_memory_equal(slot[0], slot[1], sizeof(slot[0]));
        base.hash16(acc[0], KEYS, slot[0], value, values, N);
        best->hash16(acc[1], KEYS, slot[1], value, values, N);
        for (int lane = 0; lane < 16; lane++) {
            for (int k = 0; k < KEYS; k++)
                assert_memory_equal(&acc[0][(lane * (KEYS + 1) + k) * SCAN_VALUES],
                                    &acc[1][(lane * (KEYS + 1) + k) * SCAN_VALUES],
                                    values * sizeof(float));
        }
    }
    memset(acc, 0, sizeof(acc));
    base.sum16_if(acc[0], mask, v[0], N);
    best->sum16_if(acc[1], mask, v[0], N);
    assert_memory_equal(acc[0], acc[1], 16 * sizeof(float));
}

/* ---- random graphs --------------------------------------------------------------------------- */

enum { RANDOM_COLUMNS = 4, RANDOM_ROWS = 9001 };

static uint32_t random_value(struct scan_graph *g, struct ir_body *b, struct rng *rng,
                             const uint32_t *made, uint32_t count)
{
    static const enum ir_code codes[] = {IR_ADD, IR_SUB, IR_MUL, IR_MAX, IR_MIN};
    uint32_t v = scan_load(g, (uint32_t)rng_below(rng, RANDOM_COLUMNS));
    for (uint64_t ops = rng_below(rng, 5); ops > 0; ops--) {
        uint32_t other;
        uint64_t pick = rng_below(rng, 4);
        if (pick == 0 || count == 0) {
            other = scan_load(g, (uint32_t)rng_below(rng, RANDOM_COLUMNS));
        } else if (pick == 1) {
            other = ir_f32(b, (float)rng_below(rng, 9) * 0.25f - 1.0f);
        } else {
            uint32_t id = made[rng_below(rng, count)];
            bool sum = id & 0x100;
            other = sum ? scan_load_sum(g, id & 0xff, 0) : scan_load(g, SCAN_COLUMNS + id);
        }
        v = ir_op2(b, codes[rng_below(rng, BASE_COUNT(codes))], v, other);
    }
    /* Keeps values from growing over many loops. */
    return ir_op2(b, IR_MIN, ir_op2(b, IR_MAX, v, ir_f32(b, -64.0f)), ir_f32(b, 64.0f));
}

static struct scan_graph *random_graph(struct rng *rng)
{
    struct scan_graph *g = scan_graph_open("random");
    uint32_t made[SCAN_ELEMS], count = 0;
    for (int i = 0; i < RANDOM_COLUMNS; i++)
        scan_column(g, IR_ELEM_F32);
    for (uint64_t loops = 1 + rng_below(rng, 10); loops > 0; loops--) {
        struct ir_body *b = scan_begin(g);
        uint32_t v = random_value(g, b, rng, made, count);
        if (rng_below(rng, 3) > 0) {
            uint32_t id = scan_collect(g, v);
            g->wanted[id] = rng_below(rng, 3) == 0;
            made[count++] = id;
            continue;
        }
        struct scan_elem e = {
            .guard = IR_NONE, .key = IR_NONE, .keys = 1, .value = {v}, .values = 1};
        if (rng_below(rng, 2))
            e.guard = ir_op2(b, IR_LT, random_value(g, b, rng, made, count), ir_f32(b, 0.5f));
        if (rng_below(rng, 2)) {
            e.keys = 1 + (uint32_t)rng_below(rng, 7);
            e.key = ir_op1(b, IR_TO_I32, random_value(g, b, rng, made, count));
        }
        if (rng_below(rng, 2))
            e.value[e.values++] = random_value(g, b, rng, made, count);
        made[count++] = scan_reduce(g, &e) | 0x100;
    }
    return g;
}

/* The elem's own loop in either graph tells what it is. */
static const struct scan_elem *elem_in(const struct scan_graph *g, uint32_t id)
{
    for (uint32_t i = 0; i < g->loops; i++) {
        for (uint32_t k = 0; k < g->loop[i].count; k++) {
            if (g->loop[i].elems[k].id == id)
                return &g->loop[i].elems[k];
        }
    }
    return NULL;
}

static void expect_same(const struct scan_graph *a, const struct scan_graph *b,
                        const struct scan_source *columns, uint32_t sockets, uint64_t seed)
{
    struct scan_exec *x = scan_exec_open(a, columns, RANDOM_ROWS);
    struct scan_exec *y = scan_exec_open(b, columns, RANDOM_ROWS);
    scan_run(x, 1);
    scan_run(y, sockets);
    for (uint32_t id = 0; id < a->elems; id++) {
        const struct scan_elem *e = elem_in(a, id);
        if (e == NULL) {
            fail_msg("seed %llu: elem %u is gone", (unsigned long long)seed, id);
            return;
        }
        const void *want = e->collect ? scan_collected(x, id) : scan_sums(x, id);
        const void *got = e->collect ? scan_collected(y, id) : scan_sums(y, id);
        size_t bytes =
            e->collect ? RANDOM_ROWS * sizeof(float) : e->keys * e->values * sizeof(double);
        if (e->collect && !a->wanted[id])
            continue;
        if (memcmp(want, got, bytes) != 0)
            fail_msg("seed %llu: elem %u differs when fused (%u loops -> %u, %u sockets)",
                     (unsigned long long)seed, id, a->loops, b->loops, sockets);
    }
    scan_exec_close(&x);
    scan_exec_close(&y);
}

static void fusing_keeps_every_bit_of_random_graphs(void **state)
{
    static float data[RANDOM_COLUMNS][RANDOM_ROWS];
    struct scan_source columns[RANDOM_COLUMNS];
    struct rng rng;
    uint32_t fewer = 0;
    rng_init(&rng, 11);
    for (int c = 0; c < RANDOM_COLUMNS; c++) {
        columns[c] = (struct scan_source){data[c], sizeof(float)};
        for (int i = 0; i < RANDOM_ROWS; i++)
            data[c][i] = (float)(rng_f64(&rng) * 8 - 2);
    }
    for (uint64_t seed = 1; seed <= 300; seed++) {
        rng_init(&rng, seed);
        struct scan_graph *g = checked(random_graph(&rng)), *f = checked(scan_fuse(g, NULL));
        fewer += f->loops < g->loops;
        expect_same(g, f, columns, 1 + (uint32_t)(seed % 16), seed);
        scan_graph_close(&f);
        scan_graph_close(&g);
    }
    assert_true(fewer > 100); /* or the test says nothing */
}

/* ---- rules and gate -------------------------------------------------------------------------- */

static struct scan_graph *two_loops(bool by_sum)
{
    struct scan_graph *g = scan_graph_open("two");
    scan_column(g, IR_ELEM_F32);
    struct ir_body *b = scan_begin(g);
    uint32_t v = scan_load(g, 0), first;
    if (by_sum)
        first = scan_reduce(
            g, &(struct scan_elem){
                   .guard = IR_NONE, .key = IR_NONE, .keys = 1, .value = {v}, .values = 1});
    else
        first = scan_collect(g, ir_op2(b, IR_MUL, v, v));
    b = scan_begin(g);
    uint32_t other = by_sum ? scan_load_sum(g, first, 0) : scan_load(g, SCAN_COLUMNS + first);
    g->wanted[scan_collect(g, ir_op2(b, IR_SUB, scan_load(g, 0), other))] = true;
    return g;
}

static uint32_t loops_when_fused(struct scan_graph *g)
{
    struct scan_graph *f = checked(scan_fuse(checked(g), NULL));
    uint32_t loops = f->loops;
    scan_graph_close(&f);
    scan_graph_close(&g);
    return loops;
}

static void a_loop_never_joins_one_whose_finished_sum_it_reads(void **state)
{
    assert_int_equal(loops_when_fused(two_loops(false)), 1);
    assert_int_equal(loops_when_fused(two_loops(true)), 2);
}

/* a; s = sum(a); c = a - s: c shares a's values with the first loop, but s stands between. */
static void a_loop_never_jumps_over_one_it_waits_for(void **state)
{
    struct scan_graph *g = scan_graph_open("between");
    scan_column(g, IR_ELEM_F32);
    struct ir_body *b = scan_begin(g);
    uint32_t a = scan_collect(g, ir_op2(b, IR_MUL, scan_load(g, 0), scan_load(g, 0)));
    b = scan_begin(g);
    uint32_t s = scan_reduce(g, &(struct scan_elem){.guard = IR_NONE,
                                                    .key = IR_NONE,
                                                    .keys = 1,
                                                    .value = {scan_load(g, SCAN_COLUMNS + a)},
                                                    .values = 1});
    b = scan_begin(g);
    uint32_t left = scan_load(g, SCAN_COLUMNS + a);
    g->wanted[scan_collect(g, ir_op2(b, IR_SUB, left, scan_load_sum(g, s, 0)))] = true;
    assert_int_equal(loops_when_fused(g), 2);
}

static void loops_that_share_nothing_stay_apart(void **state)
{
    struct scan_graph *g = scan_graph_open("apart");
    for (uint32_t i = 0; i < 2; i++) {
        scan_column(g, IR_ELEM_F32);
        struct ir_body *b = scan_begin(g);
        g->wanted[scan_collect(g, ir_op2(b, IR_ADD, scan_load(g, i), ir_f32(b, 1.0f)))] = true;
    }
    assert_int_equal(loops_when_fused(g), 2);
}

/* `n` values made in one loop, all read by the next in the reverse order: all live at once. */
static struct scan_graph *many_values(uint32_t n)
{
    struct scan_graph *g = scan_graph_open("wide");
    uint32_t id[SCAN_ELEMS];
    scan_column(g, IR_ELEM_F32);
    struct ir_body *b = scan_begin(g);
    uint32_t made[SCAN_ELEMS];
    for (uint32_t i = 0; i < n; i++)
        made[i] = ir_op2(b, IR_ADD, scan_load(g, 0), ir_f32(b, (float)i));
    for (uint32_t i = 0; i < n; i++)
        id[i] = scan_collect(g, made[i]);
    b = scan_begin(g);
    uint32_t sum = scan_load(g, SCAN_COLUMNS + id[n - 1]);
    for (uint32_t i = n - 1; i-- > 0;)
        sum = ir_op2(b, IR_SUB, ir_op2(b, IR_MUL, sum, sum), scan_load(g, SCAN_COLUMNS + id[i]));
    g->wanted[scan_collect(g, sum)] = true;
    return g;
}

static void the_gate_refuses_what_does_not_fit_the_first_level_cache(void **state)
{
    struct scan_graph *few = many_values(8), *fused = scan_fuse(few, NULL);
    struct scan_block b = scan_block_of(fused, &fused->loop[0]);
    assert_int_equal(fused->loops, 1);
    assert_in_range(b.rows, SCAN_ROWS_MIN, SCAN_ROWS_MAX);
    assert_true(b.rows * b.registers * sizeof(float) <= SCAN_L1_BYTES);
    scan_graph_close(&fused);
    scan_graph_close(&few);
    uint32_t too_many = SCAN_L1_BYTES / (SCAN_ROWS_MIN * sizeof(float)) + 1;
    struct buf report = {0};
    struct scan_graph *many = many_values(too_many), *kept = scan_fuse(many, &report);
    assert_int_equal(kept->loops, 2);
    assert_non_null(strstr(report.data, "stays out"));
    buf_done(&report);
    scan_graph_close(&kept);
    scan_graph_close(&many);
}

/* ---- what is refused ------------------------------------------------------------------------- */

static void expect_refused(struct scan_graph *g, const char *why)
{
    struct err e = {0};
    assert_int_equal(scan_verify(g, &e), ERR_INVALID);
    if (strstr(e.msg, why) == NULL)
        fail_msg("'%s' does not say '%s'", e.msg, why);
    scan_graph_close(&g);
}

static void wrong_graphs_are_refused_and_say_why(void **state)
{
    struct scan_graph *g = scan_graph_open("wrong");
    scan_begin(g);
    expect_refused(g, "makes nothing");
    g = scan_graph_open("wrong");
    struct ir_body *b = scan_begin(g);
    scan_collect(g, ir_load1(b, 3, IR_TYPE_F32, ir_index(b, 0)));
    expect_refused(g, "no such operand");
    g = scan_graph_open("wrong");
    scan_column(g, IR_ELEM_F32);
    b = scan_begin(g);
    scan_collect(g, ir_load1(b, 0, IR_TYPE_F32, ir_i32(b, 0)));
    expect_refused(g, "at the row only");
    g = scan_graph_open("wrong");
    scan_column(g, IR_ELEM_I32);
    b = scan_begin(g);
    scan_reduce(
        g,
        &(struct scan_elem){
            .guard = IR_NONE, .key = IR_NONE, .keys = 1, .value = {scan_load(g, 0)}, .values = 1});
    expect_refused(g, "only f32 is summed");
    g = scan_graph_open("wrong");
    scan_column(g, IR_ELEM_F32);
    scan_column(g, IR_ELEM_I32);
    b = scan_begin(g);
    scan_collect(g, ir_op2(b, IR_ADD, scan_load(g, 0), scan_load(g, 1)));
    expect_refused(g, "different types");
    g = two_loops(true);
    g->loop[1].body.ops[0].imm = (int32_t)(SCAN_COLUMNS + 1);
    expect_refused(g, "");
}

static void every_workload_gives_the_same_in_all_ways(void **state)
{
    for (int w = 0; w < RDU_ABLATION_WORKS; w++) {
        for (int columns = 0; columns < 2; columns++) {
            struct rdu_ablation_spec spec = {.work = (enum rdu_ablation_work)w,
                                             .columns = columns,
                                             .n = 5000,
                                             .tokens = 3,
                                             .seed = 3};
            if (w == RDU_ABLATION_DECODER_LAYER)
                spec.n = 128;
            struct rdu_ablation *a = NULL;
            struct err e = {0};
            if (rdu_ablation_open(&spec, &a, &e) != ERR_OK || rdu_ablation_check(a, &e) != ERR_OK)
                fail_msg("%s: %s", rdu_ablation_name(spec.work), e.msg);
            struct buf b = {0};
            rdu_ablation_explain(a, &b);
            assert_true(b.len > 0);
            buf_done(&b);
            rdu_ablation_close(&a);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(queries_give_what_plain_c_gives_at_all_levels_and_socket_counts),
        cmocka_unit_test(both_builds_of_the_reducers_agree),
        cmocka_unit_test(fusing_keeps_every_bit_of_random_graphs),
        cmocka_unit_test(a_loop_never_joins_one_whose_finished_sum_it_reads),
        cmocka_unit_test(a_loop_never_jumps_over_one_it_waits_for),
        cmocka_unit_test(loops_that_share_nothing_stay_apart),
        cmocka_unit_test(the_gate_refuses_what_does_not_fit_the_first_level_cache),
        cmocka_unit_test(wrong_graphs_are_refused_and_say_why),
        cmocka_unit_test(every_workload_gives_the_same_in_all_ways),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
