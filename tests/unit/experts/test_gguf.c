/* The GGUF reader: typed access, limits, split sets. Malformed files have programs of their own. */
#include "tests/unit/experts/unit.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "experts/gguf.h"

static struct gguf *parse(const struct made *m)
{
    struct buf b = {0};
    struct gguf *g = NULL;
    struct err e;
    made_header(m, &b);
    /* At an odd address: nothing may rely on alignment. */
    char *odd = mem_alloc(b.len + 1);
    memcpy(odd + 1, b.data, b.len);
    unit_ok(gguf_parse(odd + 1, b.len, UINT64_MAX, "made", &g, &e), &e);
    free(odd);
    buf_done(&b);
    return g;
}

static void every_integer_kind_is_read(void **state)
{
    struct made m = {0};
    struct err e;
    uint64_t v;
    const uint8_t u8 = 200;
    const int8_t i8 = -5;
    const uint16_t u16 = 60000;
    const int16_t i16 = 77;
    const int32_t i32 = -1;
    const uint64_t u64 = UINT64_MAX;
    const int64_t i64 = INT64_MIN;
    made_kv(&m, "u8", GGUF_U8, &u8, 1);
    made_kv(&m, "i8", GGUF_I8, &i8, 1);
    made_kv(&m, "u16", GGUF_U16, &u16, 2);
    made_kv(&m, "i16", GGUF_I16, &i16, 2);
    made_u32(&m, "u32", 4000000000u);
    made_kv(&m, "i32", GGUF_I32, &i32, 4);
    made_kv(&m, "u64", GGUF_U64, &u64, 8);
    made_kv(&m, "i64", GGUF_I64, &i64, 8);
    struct gguf *g = parse(&m);
    unit_ok(gguf_get_u64(g, "u8", &v, &e), &e);
    assert_int_equal(v, 200);
    unit_ok(gguf_get_u64(g, "u16", &v, &e), &e);
    assert_int_equal(v, 60000);
    unit_ok(gguf_get_u64(g, "i16", &v, &e), &e);
    assert_int_equal(v, 77);
    unit_ok(gguf_get_u64(g, "u32", &v, &e), &e);
    assert_int_equal(v, 4000000000u);
    unit_ok(gguf_get_u64(g, "u64", &v, &e), &e);
    assert_true(v == UINT64_MAX);
    const char *const negative[] = {"i8", "i32", "i64"};
    for (size_t i = 0; i < BASE_COUNT(negative); i++) {
        unit_code(gguf_get_u64(g, negative[i], &v, &e), ERR_CORRUPT, &e);
        unit_says(&e, negative[i]);
    }
    double d;
    unit_ok(gguf_get_f64(g, "i8", &d, &e), &e);
    assert_true(d == -5.0);
    gguf_close(&g);
    made_done(&m);
}

static void other_kinds_are_refused_by_name(void **state)
{
    struct made m = {0};
    struct err e;
    uint64_t u;
    double d;
    bool b;
    struct gguf_str s;
    size_t n;
    const uint8_t yes = 1, two = 2;
    const double half = 0.5;
    made_f32(&m, "f", 1.5F);
    made_kv(&m, "d", GGUF_F64, &half, 8);
    made_kv(&m, "yes", GGUF_BOOL, &yes, 1);
    made_kv(&m, "two", GGUF_BOOL, &two, 1);
    made_str(&m, "s", "text");
    struct gguf *g = parse(&m);
    unit_ok(gguf_get_f64(g, "f", &d, &e), &e);
    assert_true(d == 1.5);
    unit_ok(gguf_get_f64(g, "d", &d, &e), &e);
    assert_true(d == 0.5);
    unit_ok(gguf_get_bool(g, "yes", &b, &e), &e);
    assert_true(b);
    unit_ok(gguf_get_str(g, "s", &s, &e), &e);
    assert_true(gguf_str_is(s, "text"));
    unit_code(gguf_get_bool(g, "two", &b, &e), ERR_CORRUPT, &e);
    unit_code(gguf_get_u64(g, "f", &u, &e), ERR_CORRUPT, &e);
    unit_says(&e, "'f' is of type float32");
    unit_code(gguf_get_f64(g, "s", &d, &e), ERR_CORRUPT, &e);
    unit_code(gguf_get_str(g, "yes", &s, &e), ERR_CORRUPT, &e);
    unit_code(gguf_get_array(g, "s", &n, &e), ERR_CORRUPT, &e);
    unit_code(gguf_get_u64(g, "absent", &u, &e), ERR_NOT_FOUND, &e);
    unit_says(&e, "'absent'");
    assert_false(gguf_has(g, "absent"));
    assert_true(gguf_has(g, "s"));
    gguf_close(&g);
    made_done(&m);
}

static void strings_of_an_array_are_found_by_index(void **state)
{
    struct made m = {0};
    struct err e;
    struct gguf_str s, *all;
    const char *list[1000];
    size_t count;
    for (size_t i = 0; i < BASE_COUNT(list); i++)
        list[i] = mem_format("%.*s%zu", (int)(i % 7), "......", i);
    made_strs(&m, "list", list, BASE_COUNT(list));
    made_strs(&m, "empty", list, 0);
    struct gguf *g = parse(&m);
    unit_ok(gguf_array_strs(g, "list", &all, &count, &e), &e);
    assert_int_equal(count, BASE_COUNT(list));
    for (size_t i = 0; i < BASE_COUNT(list); i++) {
        unit_ok(gguf_array_str(g, "list", i, &s, &e), &e);
        assert_true(gguf_str_is(s, list[i]));
        assert_true(gguf_str_is(all[i], list[i]));
    }
    unit_code(gguf_array_str(g, "list", BASE_COUNT(list), &s, &e), ERR_INVALID, &e);
    unit_code(gguf_array_str(g, "empty", 0, &s, &e), ERR_INVALID, &e);
    free(all);
    unit_ok(gguf_array_strs(g, "empty", &all, &count, &e), &e);
    assert_int_equal(count, 0);
    free(all);
    gguf_close(&g);
    made_done(&m);
    for (size_t i = 0; i < BASE_COUNT(list); i++)
        free((char *)list[i]);
}

static void number_arrays_are_read_where_they_lie(void **state)
{
    struct made m = {0};
    struct buf b = {0};
    struct err e;
    const uint32_t f32 = GGUF_F32, i32 = GGUF_I32;
    const uint64_t n = 3;
    const float f[3] = {1, -2, 0.25F};
    const int32_t i[3] = {7, -8, 9};
    buf_append(&b, &f32, 4);
    buf_append(&b, &n, 8);
    buf_append(&b, f, sizeof(f));
    made_kv(&m, "f", GGUF_ARRAY, b.data, b.len);
    buf_clear(&b);
    buf_append(&b, &i32, 4);
    buf_append(&b, &n, 8);
    buf_append(&b, i, sizeof(i));
    made_kv(&m, "i", GGUF_ARRAY, b.data, b.len);
    struct gguf *g = parse(&m);
    const void *p;
    size_t count;
    unit_ok(gguf_array_f32(g, "f", &p, &count, &e), &e);
    assert_int_equal(count, 3);
    assert_memory_equal(p, f, sizeof(f));
    unit_ok(gguf_array_i32(g, "i", &p, &count, &e), &e);
    assert_memory_equal(p, i, sizeof(i));
    unit_code(gguf_array_f32(g, "i", &p, &count, &e), ERR_CORRUPT, &e);
    unit_says(&e, "array of int32");
    struct gguf_str s;
    unit_code(gguf_array_str(g, "i", 0, &s, &e), ERR_CORRUPT, &e);
    gguf_close(&g);
    buf_done(&b);
    made_done(&m);
}

static void many_keys_and_tensors_are_found(void **state)
{
    enum { KEYS = 3000, TENSORS = 5000 };
    struct made m = {0};
    struct err e;
    for (unsigned i = 0; i < KEYS; i++) {
        char *key = mem_format("key.%u", i);
        made_u32(&m, key, i * 3);
        free(key);
    }
    for (unsigned i = 0; i < TENSORS; i++) {
        const uint64_t dim[1] = {8};
        char *name = mem_format("tensor.%u", i);
        made_tensor(&m, name, 1, dim, 0, (uint64_t)i * 32);
        free(name);
    }
    struct gguf *g = parse(&m);
    assert_int_equal(gguf_tensors(g), TENSORS);
    for (unsigned i = 0; i < KEYS; i++) {
        char *key = mem_format("key.%u", i);
        uint64_t v;
        unit_ok(gguf_get_u64(g, key, &v, &e), &e);
        assert_int_equal(v, i * 3);
        free(key);
    }
    for (unsigned i = 0; i < TENSORS; i++) {
        char *name = mem_format("tensor.%u", i);
        const struct gguf_tensor *t = gguf_find_tensor(g, name);
        assert_ptr_equal(t, gguf_tensor_at(g, i));
        assert_string_equal(t->name, name);
        assert_int_equal(t->bytes, 32);
        free(name);
    }
    assert_null(gguf_find_tensor(g, "tensor.5000"));
    assert_null(gguf_tensor_at(g, TENSORS));
    gguf_close(&g);
    made_done(&m);
}

static void header_bytes_are_kept_verbatim(void **state)
{
    char *path = unit_data("tiny/tiny-qwen2-q8_0.gguf");
    struct gguf *g, *again;
    struct err e;
    size_t len, len2;
    struct buf file = {0};
    unit_ok(gguf_open(path, &g, &e), &e);
    const void *header = gguf_header(g, &len);
    unit_ok(file_read(path, BASE_MIB, &file, &e), &e);
    assert_memory_equal(header, file.data, len);
    unit_ok(gguf_parse(header, len, UINT64_MAX, "kept", &again, &e), &e);
    assert_int_equal(gguf_tensors(again), gguf_tensors(g));
    assert_memory_equal(gguf_header(again, &len2), header, len);
    assert_int_equal(len, len2);
    /* One byte less is no header. */
    gguf_close(&again);
    unit_code(gguf_parse(header, len - 1, UINT64_MAX, "kept", &again, &e), ERR_CORRUPT, &e);
    const struct gguf_tensor *t = gguf_find_tensor(g, "token_embd.weight");
    uint8_t *data = mem_alloc((size_t)t->bytes);
    unit_ok(gguf_read_tensor(g, t, data, &e), &e);
    assert_memory_equal(data, file.data + (len + 31) / 32 * 32 + t->offset, t->bytes);
    free(data);
    gguf_close(&g);
    buf_done(&file);
    free(path);
}

static void version_2_reads_like_version_3(void **state)
{
    struct made m = {.version = 2};
    uint64_t v;
    struct err e;
    made_u32(&m, "x", 5);
    struct gguf *g = parse(&m);
    unit_ok(gguf_get_u64(g, "x", &v, &e), &e);
    assert_int_equal(v, 5);
    gguf_close(&g);
    made_done(&m);
}

/* A header longer than the first window is fetched in further rounds. */
static void long_headers_are_read_in_rounds(void **state)
{
    enum { STRINGS = 200000 };
    struct made m = {0};
    struct err e;
    const char **list = mem_array(STRINGS, sizeof(char *));
    char *dir = unit_dir_open(), *path = unit_path(dir, "long.gguf");
    for (size_t i = 0; i < STRINGS; i++)
        list[i] = i % 2 ? "abcdefghijklmnopqrstuvwxyz" : "x";
    made_strs(&m, "a", list, STRINGS);
    made_strs(&m, "b", list, STRINGS);
    made_u32(&m, "after", 42);
    const float f[8] = {3};
    made_data(&m, "t", 8, 0, 0, f, sizeof(f));
    made_write(&m, path);
    struct gguf *g;
    struct gguf_str s;
    uint64_t v;
    unit_ok(gguf_open(path, &g, &e), &e);
    unit_ok(gguf_get_u64(g, "after", &v, &e), &e);
    assert_int_equal(v, 42);
    unit_ok(gguf_array_str(g, "b", STRINGS - 1, &s, &e), &e);
    assert_int_equal(s.len, 26);
    float got[8];
    unit_ok(gguf_read_tensor(g, gguf_find_tensor(g, "t"), got, &e), &e);
    assert_memory_equal(got, f, sizeof(f));
    gguf_close(&g);
    made_done(&m);
    free(list);
    free(path);
    unit_dir_close(&dir);
}

static void what_is_no_file_is_refused(void **state)
{
    char *dir = unit_dir_open(), *fifo = unit_path(dir, "fifo"), *none = unit_path(dir, "none");
    struct gguf *g;
    struct err e;
    unit_code(gguf_open(none, &g, &e), ERR_NOT_FOUND, &e);
    unit_says(&e, "none");
    unit_code(gguf_open(dir, &g, &e), ERR_INVALID, &e);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    unit_code(gguf_open(fifo, &g, &e), ERR_INVALID, &e);
    free(fifo);
    free(none);
    unit_dir_close(&dir);
}

/* ---- split sets ---- */

/* Deal the tensors of a file out over `count` files, as gguf-split does. */
static void split(const char *from, const char *dir, uint16_t count)
{
    struct gguf *g;
    struct err e;
    unit_ok(gguf_open(from, &g, &e), &e);
    size_t n = gguf_tensors(g), each = (n + count - 1) / count;
    for (uint16_t p = 0; p < count; p++) {
        struct made m = {0};
        const int32_t total = (int32_t)n;
        if (p == 0)
            for (size_t i = 0; i < g->kv_count; i++, m.keys_count++)
                gguf_put_kv(&m.keys, &g->kv[i]);
        made_kv(&m, "split.no", GGUF_U16, &p, 2);
        made_kv(&m, "split.count", GGUF_U16, &count, 2);
        made_kv(&m, "split.tensors.count", GGUF_I32, &total, 4);
        for (size_t i = p * each; i < BASE_MIN(n, (p + 1u) * each); i++) {
            const struct gguf_tensor *t = gguf_tensor_at(g, i);
            void *data = mem_alloc((size_t)t->bytes);
            unit_ok(gguf_read_tensor(g, t, data, &e), &e);
            made_data(&m, t->name, t->dim[0], t->dims > 1 ? t->dim[1] : 0,
                      (uint32_t)rdu_type_info(t->type)->gguf_id, data, (size_t)t->bytes);
            free(data);
        }
        char *path = mem_format("%s/part-%05u-of-%05u.gguf", dir, p + 1u, count);
        made_write(&m, path);
        made_done(&m);
        free(path);
    }
    gguf_close(&g);
}

static void split_files_read_like_the_whole(void **state)
{
    char *dir = unit_dir_open(), *whole_path = unit_data("tiny/tiny-llama-q8_0.gguf");
    char *first = unit_path(dir, "part-00001-of-00003.gguf");
    struct gguf *whole, *g;
    struct err e;
    split(whole_path, dir, 3);
    unit_ok(gguf_open(whole_path, &whole, &e), &e);
    unit_ok(gguf_open(first, &g, &e), &e);
    /* The joined header is the one of a file that was never split. */
    size_t a, b;
    const void *x = gguf_header(whole, &a), *y = gguf_header(g, &b);
    assert_int_equal(a, b);
    assert_memory_equal(x, y, a);
    assert_int_equal(gguf_tensors(g), gguf_tensors(whole));
    for (size_t i = 0; i < gguf_tensors(whole); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(whole, i), *u = gguf_tensor_at(g, i);
        uint8_t *p = mem_alloc((size_t)t->bytes), *q = mem_alloc((size_t)t->bytes);
        assert_string_equal(t->name, u->name);
        unit_ok(gguf_read_tensor(whole, t, p, &e), &e);
        unit_ok(gguf_read_tensor(g, u, q, &e), &e);
        assert_memory_equal(p, q, t->bytes);
        free(p);
        free(q);
    }
    gguf_close(&g);
    gguf_close(&whole);
    free(first);
    free(whole_path);
    unit_dir_close(&dir);
}

static void torn_split_sets_are_refused(void **state)
{
    char *dir = unit_dir_open(), *whole_path = unit_data("tiny/tiny-llama-q8_0.gguf");
    char *part[3], *other = unit_path(dir, "renamed.gguf");
    struct gguf *g;
    struct err e;
    for (unsigned i = 0; i < 3; i++)
        part[i] = mem_format("%s/part-%05u-of-00003.gguf", dir, i + 1);
    split(whole_path, dir, 3);
    unit_code(gguf_open(part[1], &g, &e), ERR_INVALID, &e);
    unit_says(&e, "name the first");
    assert_int_equal(link(part[0], other), 0);
    unit_code(gguf_open(other, &g, &e), ERR_INVALID, &e);
    unit_says(&e, "original names");
    /* Parts in the wrong order. */
    assert_int_equal(unlink(part[2]), 0);
    assert_int_equal(link(part[1], part[2]), 0);
    unit_code(gguf_open(part[0], &g, &e), ERR_CORRUPT, &e);
    unit_says(&e, "00003");
    assert_int_equal(unlink(part[2]), 0);
    unit_code(gguf_open(part[0], &g, &e), ERR_NOT_FOUND, &e);
    unit_says(&e, "file 3 of 3");
    for (unsigned i = 0; i < 3; i++)
        free(part[i]);
    free(other);
    free(whole_path);
    unit_dir_close(&dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_integer_kind_is_read),
        cmocka_unit_test(other_kinds_are_refused_by_name),
        cmocka_unit_test(strings_of_an_array_are_found_by_index),
        cmocka_unit_test(number_arrays_are_read_where_they_lie),
        cmocka_unit_test(many_keys_and_tensors_are_found),
        cmocka_unit_test(header_bytes_are_kept_verbatim),
        cmocka_unit_test(version_2_reads_like_version_3),
        cmocka_unit_test(long_headers_are_read_in_rounds),
        cmocka_unit_test(what_is_no_file_is_refused),
        cmocka_unit_test(split_files_read_like_the_whole),
        cmocka_unit_test(torn_split_sets_are_refused),
    };
    return cmocka_run_group_tests_name("gguf", tests, NULL, NULL);
}
