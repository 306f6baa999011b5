/* The safetensors reader: tables that lie, files that are cut, seeded mutations. What opens must be
 * readable to its last tensor; everything else is refused with the cause. */
#include "tests/unit/experts/bert.h"

#include "experts/safetensors.h"

#include <unistd.h>

struct fixture {
    char *dir, *path;
};

static int open_dir(void **state)
{
    struct fixture *f = mem_alloc(sizeof(*f));
    f->dir = unit_dir_open();
    f->path = unit_path(f->dir, "x.safetensors");
    *state = f;
    return 0;
}

static int close_dir(void **state)
{
    struct fixture *f = *state;
    unit_dir_close(&f->dir);
    free(f->path);
    free(f);
    return 0;
}

static void write_file(const struct fixture *f, const char *table, const void *data, size_t len)
{
    struct buf b = {0};
    uint64_t n = strlen(table);
    buf_append(&b, &n, sizeof(n));
    buf_puts(&b, table);
    buf_append(&b, data, len);
    unit_write(f->path, b.data, b.len);
    buf_done(&b);
}

static void expect_refusal(const struct fixture *f, const char *table, size_t len, const char *says)
{
    static const char data[64];
    struct safetensors *s = NULL;
    struct err e = {0};
    write_file(f, table, data, len);
    unit_code(safetensors_open(f->path, &s, &e), ERR_CORRUPT, &e);
    unit_says(&e, says);
    assert_null(s);
}

static void values_of_every_float_type_are_read(void **state)
{
    struct fixture *f = *state;
    struct safetensors *s = NULL;
    struct err e = {0};
    uint8_t data[16] = {0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0, 0, 0x3c, 0, 0xc0, 0x80, 0x3f, 0, 0xc0};
    write_file(f,
               "{\"__metadata__\":{\"a\":\"b\"},\"h\":{\"dtype\":\"F16\",\"shape\":[2],"
               "\"data_offsets\":[8,12]},\"f\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":"
               "[0,8]},\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[12,16]}}   ",
               data, sizeof(data));
    unit_ok(safetensors_open(f->path, &s, &e), &e);
    for (const char *name = "fhb"; *name; name++) {
        const char key[2] = {*name, 0};
        float v[2] = {0};
        const struct safetensors_tensor *t = safetensors_find(s, key);
        assert_non_null(t);
        unit_ok(safetensors_read(s, t, v, &e), &e);
        assert_true(v[0] == 1.0f && v[1] == -2.0f);
    }
    assert_null(safetensors_find(s, "g"));
    safetensors_close(&s);
}

#define TENSOR(dtype, shape, from, to)                                                             \
    "{\"t\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}}"

static void tables_that_lie_are_refused(void **state)
{
    struct fixture *f = *state;
    expect_refusal(f, "", 0, "length of its table");
    expect_refusal(f, "[]", 0, "no JSON object");
    expect_refusal(f, "{\"t\":1}", 0, "no object");
    expect_refusal(f, "{\"t\":", 0, "no JSON object");
    expect_refusal(f, TENSOR("F31", "[1]", 0, 4), 4, "dtype");
    expect_refusal(f, TENSOR("F32", "[2]", 0, 4), 4, "does not fit");
    expect_refusal(f, TENSOR("F32", "[-1]", 0, 4), 4, "whole number");
    expect_refusal(f, TENSOR("F32", "[1.5]", 0, 4), 4, "whole number");
    expect_refusal(f, TENSOR("F32", "1", 0, 4), 4, "at most 8 sizes");
    expect_refusal(f, TENSOR("F32", "[1,1,1,1,1,1,1,1,1]", 0, 4), 4, "at most 8 sizes");
    expect_refusal(f, TENSOR("F32", "[1]", 4, 0), 4, "no range");
    expect_refusal(f, TENSOR("F32", "[1]", -4, 0), 4, "no range");
    expect_refusal(f, TENSOR("F32", "[1]", 0, 4), 3, "behind the end");
    expect_refusal(f, TENSOR("F32", "[1]", 0, 4), 5, "belong to no tensor");
    expect_refusal(f, TENSOR("F32", "[1]", 4, 8), 8, "hole");
    expect_refusal(f, TENSOR("F32", "[9223372036854775807,9223372036854775807]", 0, 4), 4, "many");
    expect_refusal(f, TENSOR("F32", "[4611686018427387905]", 0, 4), 4, "does not fit");
    expect_refusal(f,
                   "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                   "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
                   12, "overlap");
    expect_refusal(f,
                   "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                   "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
                   2, "no JSON object");
    struct safetensors *s = NULL;
    struct err e = {0};
    const uint64_t huge[2] = {UINT64_MAX, 0};
    unit_write(f->path, huge, sizeof(huge));
    unit_code(safetensors_open(f->path, &s, &e), ERR_CORRUPT, &e);
    unit_write(f->path, huge, 5);
    unit_code(safetensors_open(f->path, &s, &e), ERR_CORRUPT, &e);
    unlink(f->path);
    unit_code(safetensors_open(f->path, &s, &e), ERR_NOT_FOUND, &e);
    unit_code(safetensors_open(f->dir, &s, &e), ERR_INVALID, &e);
}

static void integers_are_known_but_are_no_weights(void **state)
{
    struct fixture *f = *state;
    struct safetensors *s = NULL;
    struct err e = {0};
    float v[1];
    write_file(f, TENSOR("I64", "[1]", 0, 8), "12345678", 8);
    unit_ok(safetensors_open(f->path, &s, &e), &e);
    unit_code(safetensors_read(s, safetensors_find(s, "t"), v, &e), ERR_UNSUPPORTED, &e);
    safetensors_close(&s);
}

/* Cut anywhere, and a byte of the table changed: refused, or every tensor can be read. */
static void mutated_files_are_refused_or_readable(void **state)
{
    struct fixture *f = *state;
    struct bert b;
    struct buf file = {0};
    struct rng r;
    uint64_t seed = unit_seed();
    size_t opened = 0;
    rng_init(&r, seed);
    bert_open(&b, seed);
    bert_safetensors(&b, &file);
    uint64_t table;
    memcpy(&table, file.data, sizeof(table));
    for (int round = 0; round < 600; round++) {
        struct safetensors *s = NULL;
        struct err e = {0};
        size_t len = round % 3 == 0 ? rng_below(&r, file.len) : file.len;
        size_t at = rng_below(&r, 8 + table);
        char was = file.data[at];
        if (round % 3 != 0)
            file.data[at] = "0123456789{}[],:\"x\xff"[rng_below(&r, 19)];
        unit_write(f->path, file.data, len);
        if (safetensors_open(f->path, &s, &e) == ERR_OK) {
            opened++;
            for (size_t i = 0; i < b.count; i++) {
                const struct safetensors_tensor *t = safetensors_find(s, b.tensors[i].hf);
                float *v = t ? mem_array((size_t)t->elems + 1, sizeof(float)) : NULL;
                if (t && t->type != SAFETENSORS_OTHER)
                    unit_ok(safetensors_read(s, t, v, &e), &e);
                free(v);
            }
            safetensors_close(&s);
        }
        file.data[at] = was;
    }
    print_message("%zu of 600 mutations could be opened\n", opened);
    bert_close(&b);
    buf_done(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_of_every_float_type_are_read),
        cmocka_unit_test(tables_that_lie_are_refused),
        cmocka_unit_test(integers_are_known_but_are_no_weights),
        cmocka_unit_test(mutated_files_are_refused_or_readable),
    };
    return cmocka_run_group_tests(tests, open_dir, close_dir);
}
