/* Formats: values against an outside implementation's fixtures, f16 rounding, packing round trips,
 * quantising. */
#include "tests/unit/rdu/kernels_util.h"

#include <jansson.h>

#include <stdio.h>

/* Directory of the fixtures, or NULL: then the test skips. */
static const char *fixtures(char *path, size_t cap)
{
    const char *shared = getenv("SWITCHYARD_SHARED");
    snprintf(path, cap, "%s/fixtures/quants", shared != NULL ? shared : "../shared");
    char manifest[1200];
    snprintf(manifest, sizeof manifest, "%s/manifest.json", path);
    FILE *f = fopen(manifest, "r");
    if (f == NULL) {
        print_message("no fixtures at %s: skipped (set SWITCHYARD_SHARED)\n", path);
        return NULL;
    }
    fclose(f);
    return path;
}

static struct buf read_file(const char *dir, const char *name)
{
    char path[1200];
    struct buf b = {0};
    struct err e;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    if (file_read(path, 1 << 20, &b, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    return b;
}

static json_t *load_manifest(const char *dir)
{
    struct buf text = read_file(dir, "manifest.json");
    json_error_t why;
    json_t *list = json_loads(text.data, 0, &why);
    assert_non_null(list);
    buf_done(&text);
    return list;
}

static bool within_one_ulp(float a, float b)
{
    return a == b || nextafterf(a, b) == b;
}

static void check_dequant(const char *dir, json_t *entry)
{
    enum rdu_type type;
    assert_true(
        rdu_type_from_gguf((int)json_integer_value(json_object_get(entry, "ggml_type_id")), &type));
    const struct rdu_type_info *info = rdu_type_info(type);
    assert_string_equal(info->name, json_string_value(json_object_get(entry, "type")));
    assert_int_equal(info->block_elems,
                     json_integer_value(json_object_get(entry, "block_elements")));
    assert_int_equal(info->block_bytes, json_integer_value(json_object_get(entry, "block_bytes")));
    size_t n = (size_t)json_integer_value(json_object_get(entry, "blocks")) * info->block_elems;
    struct buf raw = read_file(dir, json_string_value(json_object_get(entry, "raw")));
    struct buf want = read_file(dir, json_string_value(json_object_get(entry, "expected")));
    assert_int_equal(want.len, n * sizeof(float));
    float *got = mem_array(n, sizeof *got);
    rdu_dequant_row(type, raw.data, got, n);
    for (size_t i = 0; i < n; i++) {
        float expected;
        memcpy(&expected, want.data + i * sizeof expected, sizeof expected);
        if (!(within_one_ulp(got[i], expected) || (isnan(got[i]) && isnan(expected))))
            fail_msg("%s element %zu: %a, expected %a", info->name, i, (double)got[i],
                     (double)expected);
    }
    free(got);
    buf_done(&raw);
    buf_done(&want);
}

static void dequantises_every_format_like_the_fixtures(void **state)
{
    (void)state;
    char dir[1100];
    if (fixtures(dir, sizeof dir) == NULL)
        skip();
    json_t *list = load_manifest(dir), *entry;
    size_t i, checked = 0;
    json_array_foreach(list, i, entry)
    {
        if (json_object_get(entry, "raw") != NULL) {
            check_dequant(dir, entry);
            checked++;
        }
    }
    assert_int_equal(checked, 21);
    json_decref(list);
}

/* Ties may round either way, so values are compared: within one step of the fixture's. */
static void check_quantise(const char *dir, json_t *entry)
{
    enum rdu_type type = RDU_TYPES;
    const char *name = json_string_value(json_object_get(entry, "type"));
    for (unsigned t = 0; t < RDU_TYPES; t++)
        if (strcmp(rdu_type_info((enum rdu_type)t)->name, name) == 0)
            type = (enum rdu_type)t;
    if (type == RDU_Q5_0 || type == RDU_Q5_1)
        return;
    size_t n = (size_t)(json_integer_value(json_object_get(entry, "rows")) *
                        json_integer_value(json_object_get(entry, "cols")));
    struct buf in = read_file(dir, json_string_value(json_object_get(entry, "quantise_input")));
    struct buf want = read_file(dir, json_string_value(json_object_get(entry, "expected_bytes")));
    float *x = mem_array(n, sizeof *x), *a = mem_array(n, sizeof *a), *b = mem_array(n, sizeof *b);
    uint8_t *bytes = mem_alloc(want.len);
    struct err e;
    memcpy(x, in.data, n * sizeof *x);
    assert_int_equal(rdu_quantize_row(type, x, bytes, n, &e), ERR_OK);
    rdu_dequant_row(type, bytes, a, n);
    rdu_dequant_row(type, want.data, b, n);
    size_t elems = rdu_type_info(type)->block_elems, different = 0;
    for (size_t i = 0; i < n; i++) {
        float low = x[i], high = x[i];
        for (size_t k = i / elems * elems; k < (i / elems + 1) * elems; k++) {
            low = fminf(low, b[k]);
            high = fmaxf(high, b[k]);
        }
        float step = type == RDU_Q8_0 ? fmaxf(high, -low) / 126 : (high - low) / 14;
        assert_true(fabsf(a[i] - b[i]) <= step);
        different += a[i] != b[i];
    }
    assert_true(different <= n / 100);
    free(x);
    free(a);
    free(b);
    free(bytes);
    buf_done(&in);
    buf_done(&want);
}

static void quantises_like_the_fixtures(void **state)
{
    (void)state;
    char dir[1100];
    if (fixtures(dir, sizeof dir) == NULL)
        skip();
    json_t *list = load_manifest(dir), *entry;
    size_t i;
    json_array_foreach(list, i, entry) if (json_object_get(entry, "quantise_input") != NULL)
        check_quantise(dir, entry);
    json_decref(list);
}

static void f16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float v = rdu_f16_to_f32((uint16_t)h);
        if ((h & 0x7fff) > 0x7c00) {
            assert_true(isnan(v));
            assert_true((rdu_f32_to_f16(v) & 0x7fff) > 0x7c00);
            continue;
        }
        assert_int_equal(rdu_f32_to_f16(v), h);
        if ((h & 0x7fff) >= 0x7bff)
            continue;
        /* The midpoint to the next larger magnitude, and its neighbours. */
        float next = rdu_f16_to_f32((uint16_t)(h + 1)), mid = v + (next - v) / 2;
        assert_int_equal(rdu_f32_to_f16(mid), h & 1 ? h + 1 : h);
        assert_int_equal(rdu_f32_to_f16(nextafterf(mid, v)), h);
        assert_int_equal(rdu_f32_to_f16(nextafterf(mid, next)), h + 1);
    }
    assert_int_equal(rdu_f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(rdu_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(rdu_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(rdu_f32_to_f16(0x1p-149f), 0);
}

static void packing_gives_back_every_byte(void **state)
{
    (void)state;
    struct rng r;
    rng_init(&r, util_seed());
    for (unsigned t = 0; t < RDU_TYPES; t++) {
        enum rdu_type type = (enum rdu_type)t;
        const struct rdu_type_info *info = rdu_type_info(type);
        for (size_t rows = 1; rows <= 19; rows += rows < 9 ? 1 : 5) {
            size_t cols =
                info->is_float ? 1 + rng_below(&r, 70) : info->block_elems * (1 + rows % 3);
            size_t bytes = rows * (cols / info->block_elems) * info->block_bytes;
            uint8_t *raw = util_raw_rows(&r, type, rows, cols, true);
            struct util_fenced packed = util_pack(type, rows, cols, raw);
            uint8_t *back = mem_alloc(bytes);
            assert_int_equal(rdu_pack_bytes(type, rows, cols),
                             (rows + 7) / 8 * 8 * (cols / info->block_elems) * info->block_bytes);
            rdu_unpack_rows(type, rows, cols, packed.data, back);
            assert_memory_equal(raw, back, bytes);
            free(raw);
            util_fenced_close(&packed);
            free(back);
        }
    }
}

static void packed_accessors_agree_with_rows(void **state)
{
    (void)state;
    struct rng r;
    rng_init(&r, util_seed() + 1);
    const uint32_t rows = 11;
    for (unsigned t = 0; t < RDU_TYPES; t++) {
        enum rdu_type type = (enum rdu_type)t;
        const struct rdu_type_info *info = rdu_type_info(type);
        uint32_t cols = info->is_float ? 67 : 2 * info->block_elems;
        size_t row_bytes = (size_t)(cols / info->block_elems) * info->block_bytes;
        uint8_t *raw = util_raw_rows(&r, type, rows, cols, false);
        struct util_fenced weights = util_pack(type, rows, cols, raw);
        const void *packed = weights.data;
        float *want = mem_array(cols, sizeof *want);
        for (uint32_t row = 0; row < rows; row++) {
            rdu_dequant_row(type, raw + row * row_bytes, want, cols);
            for (uint32_t c = 0; c < cols; c++) {
                float got = rdu_packed_f32(type, packed, cols, row, c);
                if (!util_same(got, want[c]))
                    fail_msg("%s row %u col %u: %a, expected %a", info->name, row, c, (double)got,
                             (double)want[c]);
                if (!rdu_type_has_q8(type) || type == RDU_Q2_K)
                    continue;
                /* The integer form is the same number. */
                float q = (float)rdu_packed_q(type, packed, cols, row, c);
                float v = rdu_packed_d(type, packed, cols, row, c / 32) * q;
                if (rdu_type_has_min(type))
                    v += rdu_packed_m(type, packed, cols, row, c / 32);
                assert_true(v == want[c]);
            }
        }
        free(raw);
        util_fenced_close(&weights);
        free(want);
    }
}

static void pack_bytes_refuses_what_cannot_be(void **state)
{
    (void)state;
    assert_int_equal(rdu_pack_bytes(RDU_Q4_1, 8, 33), 0);
    assert_int_equal(rdu_pack_bytes(RDU_Q4_K, 8, 128), 0);
    assert_int_equal(rdu_pack_bytes(RDU_F32, SIZE_MAX, 4), 0);
    assert_int_equal(rdu_pack_bytes(RDU_F32, SIZE_MAX / 8, 64), 0);
    assert_int_equal(rdu_pack_bytes(RDU_F32, 8, RDU_COLS_MAX + 1), 0);
    assert_int_equal(rdu_pack_bytes(RDU_TYPES, 8, 32), 0);
    assert_int_equal(rdu_pack_bytes(RDU_Q4_1, 9, 64), 2 * 2 * 160);
    assert_null(rdu_type_info(RDU_TYPES));
    enum rdu_type type;
    assert_false(rdu_type_from_gguf(4, &type));
    assert_false(rdu_type_from_gguf(-1, &type));
}

static void quantise_says_why_it_refuses(void **state)
{
    (void)state;
    float x[64] = {0};
    uint8_t out[256];
    struct err e;
    assert_int_equal(rdu_quantize_row(RDU_Q6_K, x, out, 64, &e), ERR_UNSUPPORTED);
    assert_int_equal(rdu_quantize_row(RDU_Q8_0, x, out, 40, &e), ERR_INVALID);
    assert_int_equal(rdu_quantize_row(RDU_TYPES, x, out, 64, &e), ERR_INVALID);
    x[37] = NAN;
    assert_int_equal(rdu_quantize_row(RDU_Q8_0, x, out, 64, &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, "column 37"));
    assert_int_equal(rdu_quantize_row(RDU_F16, x, out, 64, &e), ERR_OK);
    x[37] = -INFINITY;
    assert_int_equal(rdu_quantize_row(RDU_Q4_0, x, out, 64, &e), ERR_INVALID);
    x[37] = 1e7f;
    assert_int_equal(rdu_quantize_row(RDU_Q4_1, x, out, 64, &e), ERR_INVALID);
    assert_non_null(strstr(e.msg, "1e+07"));
    assert_int_equal(rdu_quantize_row(RDU_Q4_1, x, out, 64, NULL), ERR_INVALID);
}

static void quantise_stays_finite_and_close(void **state)
{
    (void)state;
    struct rng r;
    rng_init(&r, util_seed() + 2);
    static const enum rdu_type types[] = {RDU_Q8_0, RDU_Q4_0, RDU_Q4_1};
    float x[32], y[32];
    uint8_t out[64];
    for (unsigned round = 0; round < 3000; round++) {
        enum rdu_type type = types[round % 3];
        float size = ldexpf(1.0f, (int)rng_below(&r, 160) - 145);
        float max = 0, min = 0;
        for (unsigned i = 0; i < 32; i++) {
            x[i] = round % 7 == 0 ? size : util_unit(&r) * size;
            max = fmaxf(max, x[i]);
            min = fminf(min, x[i]);
        }
        struct err e;
        assert_int_equal(rdu_quantize_row(type, x, out, 32, &e), ERR_OK);
        rdu_dequant_row(type, out, y, 32);
        float top = fmaxf(max, -min);
        /* One step, the rounding of scale and minimum to f16, and f16's smallest step times 127. */
        float step = type == RDU_Q8_0 ? top / 127 : type == RDU_Q4_0 ? top / 8 : (max - min) / 15;
        float bound = step + top * 0x1p-9f + 127 * 0x1p-25f;
        for (unsigned i = 0; i < 32; i++)
            if (!(fabsf(y[i] - x[i]) <= bound))
                fail_msg("%s seed %llu round %u: %g became %g", rdu_type_info(type)->name,
                         (unsigned long long)util_seed(), round, (double)x[i], (double)y[i]);
    }
    float largest[32];
    for (unsigned i = 0; i < 32; i++)
        largest[i] = i % 2 ? 65519.0f : -65519.0f;
    struct err e;
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(rdu_quantize_row(types[i], largest, out, 32, &e), ERR_OK);
        rdu_dequant_row(types[i], out, y, 32);
        for (unsigned k = 0; k < 32; k++)
            assert_true(isfinite(y[k]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dequantises_every_format_like_the_fixtures),
        cmocka_unit_test(quantises_like_the_fixtures),
        cmocka_unit_test(f16_rounds_to_nearest_even),
        cmocka_unit_test(packing_gives_back_every_byte),
        cmocka_unit_test(packed_accessors_agree_with_rows),
        cmocka_unit_test(pack_bytes_refuses_what_cannot_be),
        cmocka_unit_test(quantise_says_why_it_refuses),
        cmocka_unit_test(quantise_stays_finite_and_close),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
