/* The linear leaves: every instruction set against the scalar reference bit for bit, the reference
 * against double, outputs inside their rows. */
#include "tests/unit/rdu/kernels_util.h"

struct shape {
    uint32_t rows, cols, tokens;
    bool add, wild;
};

struct operands {
    enum rdu_type type;
    struct shape shape;
    uint8_t *raw;
    struct util_fenced weights, floats;
    const void *packed; /* = weights.data */
    struct util_q8 q8;
    float *x; /* = floats.data */
    size_t x_stride, y_stride;
};

static void operands_init(struct operands *o, struct rng *r, enum rdu_type type, struct shape shape)
{
    o->type = type;
    o->shape = shape;
    o->raw = util_raw_rows(r, type, shape.rows, shape.cols, shape.wild);
    o->weights = util_pack(type, shape.rows, shape.cols, o->raw);
    o->packed = o->weights.data;
    o->q8 = util_q8_open(r, shape.tokens, shape.cols);
    o->x_stride = shape.cols + rng_below(r, 3) * 7;
    o->y_stride = (shape.rows + 7) / 8 * 8 + rng_below(r, 3) * 5;
    size_t floats = o->x_stride * (shape.tokens - 1) + shape.cols;
    o->floats = util_fenced_open(floats * sizeof *o->x);
    o->x = o->floats.data;
    for (size_t i = 0; i < floats; i++)
        o->x[i] = util_wide(r);
    if (shape.wild)
        o->x[rng_below(r, shape.cols)] = INFINITY;
}

static void operands_done(struct operands *o)
{
    free(o->raw);
    util_fenced_close(&o->weights);
    util_fenced_close(&o->floats);
    util_q8_close(&o->q8);
}

/* Row groups in two calls, so that group_from > 0 is exercised. */
static void run(const struct rdu_kernels *k, const struct operands *o, bool q8, float *y)
{
    uint32_t groups = (o->shape.rows + 7) / 8, cut = groups / 3;
    uint32_t edge[3] = {0, cut, groups};
    for (unsigned i = 0; i < 2; i++) {
        if (q8)
            k->mm_q8[o->type](o->packed, o->shape.cols, edge[i], edge[i + 1], &o->q8.x,
                              o->shape.tokens, y, o->y_stride, o->shape.add);
        else
            k->mm_f32[o->type](o->packed, o->shape.cols, edge[i], edge[i + 1], o->x, o->x_stride,
                               o->shape.tokens, y, o->y_stride, o->shape.add);
    }
}

static void start_values(struct util_guarded *y)
{
    for (size_t i = 0; i < y->count; i++)
        y->data[i] = (float)(i % 17) - 8.0f;
}

static void compare_tables(const struct util_tables *t, const struct operands *o, bool q8)
{
    size_t n = o->y_stride * o->shape.tokens, padded = (o->shape.rows + 7) / 8 * 8;
    struct util_guarded want = util_guarded_open(n), got = util_guarded_open(n);
    start_values(&want);
    run(&t->k[0], o, q8, want.data);
    for (unsigned i = 1; i < t->count; i++) {
        start_values(&got);
        run(&t->k[i], o, q8, got.data);
        assert_true(util_guarded_intact(&got));
        for (size_t k = 0; k < n; k++) {
            float expected = k % o->y_stride < padded ? want.data[k] : (float)(k % 17) - 8.0f;
            if (!util_same(got.data[k], expected))
                fail_msg(
                    "%s %s %s %ux%u tokens %u add %d wild %d seed %llu: row %zu token %zu is %a, "
                    "expected %a",
                    t->name[i], rdu_type_info(o->type)->name, q8 ? "int8" : "f32", o->shape.rows,
                    o->shape.cols, o->shape.tokens, o->shape.add, o->shape.wild,
                    (unsigned long long)util_seed(), k % o->y_stride, k / o->y_stride,
                    (double)got.data[k], (double)expected);
        }
    }
    util_guarded_close(&want);
    util_guarded_close(&got);
}

static uint32_t random_cols(struct rng *r, enum rdu_type type)
{
    const struct rdu_type_info *info = rdu_type_info(type);
    if (info->is_float)
        return 1 + (uint32_t)rng_below(r, 300);
    return info->block_elems * (1 + (uint32_t)rng_below(r, info->block_elems == 32 ? 12 : 3));
}

static void every_isa_gives_the_reference_bits(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 10);
    for (unsigned i = 0; i < RDU_TYPES; i++) {
        enum rdu_type type = (enum rdu_type)i;
        for (uint32_t tokens = 1; tokens <= 19; tokens++) {
            struct shape s = {
                .rows = 1 + (uint32_t)rng_below(&r, 90),
                .cols = random_cols(&r, type),
                .tokens = tokens,
                .add = rng_below(&r, 2),
                .wild = rng_below(&r, 4) == 0,
            };
            struct operands o;
            operands_init(&o, &r, type, s);
            compare_tables(t, &o, false);
            if (rdu_type_has_q8(type))
                compare_tables(t, &o, true);
            operands_done(&o);
        }
    }
}

static void many_tokens_give_the_reference_bits(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 11);
    static const uint32_t tokens[] = {31, 32, 33, 63, 64, 65, 100, 129};
    for (unsigned i = 0; i < RDU_TYPES; i++) {
        enum rdu_type type = (enum rdu_type)i;
        struct shape s = {24, rdu_type_info(type)->is_float ? 37 : 512,
                          tokens[rng_below(&r, BASE_COUNT(tokens))], false, false};
        struct operands o;
        operands_init(&o, &r, type, s);
        compare_tables(t, &o, false);
        if (rdu_type_has_q8(type))
            compare_tables(t, &o, true);
        operands_done(&o);
    }
}

/* Rows so long that the leaves' scratch limits the token tile. */
static void long_rows_give_the_reference_bits(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 12);
    static const enum rdu_type types[] = {RDU_Q4_0, RDU_Q8_0, RDU_Q4_1, RDU_Q6_K, RDU_Q3_K};
    static const uint32_t cols[] = {33024, 65536, (uint32_t)RDU_COLS_MAX};
    for (unsigned i = 0; i < BASE_COUNT(types); i++) {
        struct operands o;
        operands_init(&o, &r, types[i],
                      (struct shape){3, cols[i % 3], i < 3 ? 17 : 2, false, false});
        compare_tables(t, &o, true);
        operands_done(&o);
    }
}

/* Tokens, batches and row splits must not change a single bit of an output. */
static void batch_and_shard_do_not_matter(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 13);
    const struct rdu_kernels *k = &t->k[t->count - 1];
    for (unsigned i = 0; i < RDU_TYPES; i++) {
        enum rdu_type type = (enum rdu_type)i;
        struct operands o;
        operands_init(
            &o, &r, type,
            (struct shape){56, rdu_type_info(type)->is_float ? 100 : 256, 21, false, false});
        size_t n = o.y_stride * 21;
        float *whole = mem_array(n, sizeof *whole), *parts = mem_array(n, sizeof *parts);
        for (unsigned q8 = 0; q8 <= rdu_type_has_q8(type); q8++) {
            run(k, &o, q8, whole);
            for (uint32_t token = 0; token < 21; token++) {
                for (uint32_t g = 0; g < 7; g++) {
                    struct rdu_q8 x = o.q8.x;
                    x.q += token * x.q_stride;
                    x.d += token * x.b_stride;
                    x.s += token * x.b_stride;
                    float *y = parts + token * o.y_stride;
                    if (q8)
                        k->mm_q8[type](o.packed, o.shape.cols, g, g + 1, &x, 1, y, 0, false);
                    else
                        k->mm_f32[type](o.packed, o.shape.cols, g, g + 1, o.x + token * o.x_stride,
                                        0, 1, y, 0, false);
                }
            }
            for (size_t j = 0; j < n; j++)
                if (j % o.y_stride < 56)
                    assert_true(util_same(whole[j], parts[j]));
        }
        free(whole);
        free(parts);
        operands_done(&o);
    }
}

/* Sum and the sum of magnitudes of one output, in double, from the raw row. */
static void oracle(const struct operands *o, bool q8, uint32_t row, uint32_t token, double *ret_sum,
                   double *ret_size)
{
    const struct rdu_type_info *info = rdu_type_info(o->type);
    uint32_t cols = o->shape.cols;
    size_t row_bytes = (size_t)(cols / info->block_elems) * info->block_bytes;
    float *w = mem_array(cols, sizeof *w);
    rdu_dequant_row(o->type, o->raw + row * row_bytes, w, cols);
    double sum = 0, size = 0;
    for (uint32_t c = 0; c < cols; c++) {
        double x = (double)o->x[token * o->x_stride + c];
        if (q8)
            x = (double)o->q8.x.q[token * o->q8.x.q_stride + c] *
                (double)o->q8.x.d[token * o->q8.x.b_stride + c / 32];
        double magnitude = fabs((double)w[c]);
        if (q8 && rdu_type_has_min(o->type)) /* scale and minimum may cancel in w */
            magnitude += 2 * fabs((double)rdu_packed_m(o->type, o->packed, cols, row, c / 32));
        sum += (double)w[c] * x;
        size += magnitude * fabs(x);
    }
    free(w);
    *ret_sum = sum;
    *ret_size = size;
}

static void reference_is_close_to_double(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 14);
    for (unsigned i = 0; i < RDU_TYPES; i++) {
        enum rdu_type type = (enum rdu_type)i;
        struct operands o;
        operands_init(
            &o, &r, type,
            (struct shape){13, rdu_type_info(type)->is_float ? 301 : 768, 3, false, false});
        /* The activations' sums must fit their bytes for the minimum's term. */
        for (uint32_t token = 0; token < 3; token++) {
            for (uint32_t b = 0; b < o.shape.cols / 32; b++) {
                int sum = 0;
                for (unsigned c = 0; c < 32; c++)
                    sum += o.q8.x.q[token * o.q8.x.q_stride + b * 32 + c];
                o.q8.x.s[token * o.q8.x.b_stride + b] =
                    o.q8.x.d[token * o.q8.x.b_stride + b] * (float)sum;
            }
        }
        float *y = mem_array(o.y_stride * 3, sizeof *y);
        for (unsigned q8 = 0; q8 <= rdu_type_has_q8(type); q8++) {
            run(&t->k[0], &o, q8, y);
            for (uint32_t row = 0; row < 13; row++) {
                for (uint32_t token = 0; token < 3; token++) {
                    double sum, size, got = (double)y[token * o.y_stride + row];
                    oracle(&o, q8, row, token, &sum, &size);
                    /* Every operation errs by at most half an ulp of a partial sum <= size; f32 has
                     * cols fmas and runs adds, int8 up to 5 operations per run of 32. */
                    double n = q8 ? 5.0 * o.shape.cols / 32 + 4 : 1.1 * o.shape.cols + 4;
                    if (!(fabs(got - sum) <= n * 0x1p-24 * size + 1e-37))
                        fail_msg("%s %s row %u token %u: %g, in double %g, magnitude %g",
                                 rdu_type_info(type)->name, q8 ? "int8" : "f32", row, token, got,
                                 sum, size);
                }
            }
        }
        free(y);
        operands_done(&o);
    }
}

static void unpack_row_is_dequant_row(void **state)
{
    struct util_tables *t = *state;
    struct rng r;
    rng_init(&r, util_seed() + 15);
    for (unsigned i = 0; i < RDU_TYPES; i++) {
        enum rdu_type type = (enum rdu_type)i;
        const struct rdu_type_info *info = rdu_type_info(type);
        uint32_t cols = info->is_float ? 45 : 512, rows = 10;
        uint8_t *raw = util_raw_rows(&r, type, rows, cols, false);
        struct util_fenced packed = util_pack(type, rows, cols, raw);
        float *want = mem_array(cols, sizeof *want);
        for (unsigned k = 0; k < t->count; k++) {
            for (uint32_t row = 0; row < rows; row++) {
                struct util_guarded got = util_guarded_open(cols);
                size_t row_bytes = (size_t)(cols / info->block_elems) * info->block_bytes;
                rdu_dequant_row(type, raw + row * row_bytes, want, cols);
                t->k[k].unpack_row(type, packed.data, row, cols, got.data);
                assert_memory_equal(want, got.data, cols * sizeof *want);
                assert_true(util_guarded_intact(&got));
                util_guarded_close(&got);
            }
        }
        free(raw);
        util_fenced_close(&packed);
        free(want);
    }
}

static void no_slot_is_empty(void **state)
{
    struct util_tables *t = *state;
    for (unsigned i = 0; i < t->count; i++) {
        const struct rdu_kernels *k = &t->k[i];
        for (unsigned type = 0; type < RDU_TYPES; type++) {
            assert_non_null(k->mm_f32[type]);
            assert_int_equal(k->mm_q8[type] != NULL, rdu_type_has_q8((enum rdu_type)type));
        }
        assert_true(k->attn[0] && k->attn[1] && k->attn_tile[0] && k->attn_tile[1]);
        assert_true(k->kv_store[0] && k->kv_store[1]);
        assert_true(k->rms_norm && k->quantize && k->silu_mul && k->gelu_mul && k->add && k->axpy);
        assert_true(k->scale && k->softcap && k->rope && k->unpack_row && k->argmax);
    }
}

static void unknown_instruction_sets_are_refused(void **state)
{
    (void)state;
    struct rdu_kernels k;
    struct err e;
    assert_int_equal(rdu_kernels_init(&k, "sse9", &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, "sse9"));
    assert_int_equal(setenv("SWITCHYARD_CPU", "scalar", 1), 0);
    assert_int_equal(rdu_kernels_init(&k, NULL, &e), ERR_OK);
    assert_string_equal(k.isa, "scalar");
    assert_int_equal(setenv("SWITCHYARD_CPU", "neon", 1), 0);
    assert_int_equal(rdu_kernels_init(&k, NULL, &e), ERR_INVALID);
    assert_int_equal(rdu_kernels_init(&k, "scalar", &e), ERR_OK);
    assert_int_equal(unsetenv("SWITCHYARD_CPU"), 0);
    assert_int_equal(rdu_kernels_init(&k, NULL, &e), ERR_OK);
}

int main(void)
{
    struct util_tables tables;
    util_tables_init(&tables);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(every_isa_gives_the_reference_bits, &tables),
        cmocka_unit_test_prestate(many_tokens_give_the_reference_bits, &tables),
        cmocka_unit_test_prestate(long_rows_give_the_reference_bits, &tables),
        cmocka_unit_test_prestate(batch_and_shard_do_not_matter, &tables),
        cmocka_unit_test_prestate(reference_is_close_to_double, &tables),
        cmocka_unit_test_prestate(unpack_row_is_dequant_row, &tables),
        cmocka_unit_test_prestate(no_slot_is_empty, &tables),
        cmocka_unit_test(unknown_instruction_sets_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
