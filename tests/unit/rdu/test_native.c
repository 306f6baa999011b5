/* Compiled code: the same bits, a cache that trusts nothing, and no compiler needed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>
#include <dirent.h>
#include <ftw.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rdu/rdu.h"

#define N 1000

static char dir[64];
static bool have_compiler;

static const struct rdu_expr_field fields[] = {{"x", RDU_EXPR_F32, true},
                                               {"k", RDU_EXPR_I32, true},
                                               {"on", RDU_EXPR_BOOL, true},
                                               {"t", RDU_EXPR_F32, false}};
static const struct rdu_expr_spec spec = {.fields = fields, .fields_count = BASE_COUNT(fields)};

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static int fresh_dir(void **state)
{
    strcpy(dir, "/tmp/switchyard-native-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    nftw(dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    return 0;
}

static struct rdu_native *service(const char *compiler, uint64_t max_bytes)
{
    struct rdu_native *n = NULL;
    struct err e = {0};
    struct rdu_native_options o = {.compiler = compiler, .dir = dir, .max_bytes = max_bytes};
    if (rdu_native_open(&o, &n, &e) != ERR_OK)
        fail_msg("%s", e.msg);
    return n;
}

/* What `text` gives, and whether native code gave it. */
static bool value_of(struct rdu_native *n, const char *text, float *out)
{
    struct rdu_expr *x = NULL;
    struct err e = {0};
    float in[N], t = 0.7f;
    int32_t k[N], on[N];
    for (int i = 0; i < N; i++) {
        in[i] = (float)sin(i) * 4.0f;
        k[i] = i % 7 - 3;
        on[i] = i % 3 == 0;
    }
    const void *inputs[] = {in, k, on, &t};
    if (rdu_expr_open(text, strlen(text), &spec, &x, &e) != ERR_OK)
        fail_msg("%s: %s", text, e.msg);
    if (n) {
        assert_int_equal(rdu_native_submit_expr(n, x, &e), ERR_OK);
        rdu_native_wait(n);
    }
    struct rdu_expr_scratch *s = rdu_expr_scratch_open(x, N);
    rdu_expr_run(x, inputs, N, out, s);
    bool native = rdu_expr_is_native(x);
    rdu_expr_scratch_close(&s);
    rdu_expr_close(&x);
    return native;
}

static struct rdu_native_stats stats_of(struct rdu_native *n)
{
    struct rdu_native_stats s;
    rdu_native_stats(n, &s);
    return s;
}

/* Path of the one object in the cache. */
static void object_path(char *ret, size_t cap)
{
    DIR *d = opendir(dir);
    ret[0] = 0;
    for (struct dirent *f; (f = readdir(d));)
        if (strstr(f->d_name, ".so"))
            snprintf(ret, cap, "%s/%.50s", dir, f->d_name);
    closedir(d);
}

static const char *const softmax =
    "let p = exp((x - max(x)) / t); where(p / sum(p) < 0.001, -inf, x / t)";

static void compiled_expressions_give_the_same_bits(void **state)
{
    static const char *const texts[] = {
        "let p = exp((x - max(x)) / t); where(p / sum(p) < 0.001, -inf, x / t)",
        "x * 2 + k",
        "if on and k > 0 then log(abs(x)) else tanh(x)",
        "sum(x) + mean(k) + count(on)",
        "clamp(floor(x), -2, min(3, max(k))) + 0 * 1",
        "where(any(x > 3) or not all(on), k % 3, i32(x))",
        "t",
        "x",
        "rint(sqrt(abs(x))) - min(x) / 3"};
    if (!have_compiler)
        skip();
    struct rdu_native *n = service("cc", 0);
    for (size_t i = 0; i < BASE_COUNT(texts); i++) {
        float want[N], got[N];
        assert_false(value_of(NULL, texts[i], want));
        if (!value_of(n, texts[i], got))
            fail_msg("%s: %s", texts[i], stats_of(n).last_error);
        if (memcmp(want, got, sizeof(want)) != 0)
            fail_msg("%s: native differs", texts[i]);
    }
    rdu_native_close(&n);
}

static void a_second_start_compiles_nothing(void **state)
{
    float a[N], b[N];
    if (!have_compiler)
        skip();
    struct rdu_native *n = service("cc", 0);
    assert_true(value_of(n, softmax, a));
    assert_int_equal(stats_of(n).compiled, 1);
    rdu_native_close(&n);
    n = service("cc", 0);
    assert_true(value_of(n, softmax, b));
    assert_int_equal(stats_of(n).compiled, 0);
    assert_int_equal(stats_of(n).cache_hits, 1);
    assert_memory_equal(a, b, sizeof(a));
    rdu_native_close(&n);
}

static void damage(const char *path, off_t at)
{
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    fseek(f, at, SEEK_SET);
    int c = fgetc(f);
    fseek(f, at, SEEK_SET);
    fputc(c ^ 0x40, f);
    fclose(f);
}

static void an_object_that_is_not_as_it_was_stored_is_never_loaded(void **state)
{
    float a[N], b[N];
    char path[200];
    if (!have_compiler)
        skip();
    struct rdu_native *n = service("cc", 0);
    assert_true(value_of(n, softmax, a));
    object_path(path, sizeof(path));
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    for (int what = 0; what < 5; what++) {
        if (what == 0)
            damage(path, 0);
        else if (what == 1)
            damage(path, st.st_size / 2);
        else if (what == 2)
            damage(path, st.st_size - 20);
        else if (what == 3)
            assert_int_equal(truncate(path, st.st_size / 3), 0);
        else
            assert_int_equal(chmod(path, 0666), 0);
        uint64_t rejected = stats_of(n).rejected, compiled = stats_of(n).compiled;
        assert_true(value_of(n, softmax, b));
        assert_memory_equal(a, b, sizeof(a));
        assert_int_equal(stats_of(n).rejected, rejected + 1);
        assert_int_equal(stats_of(n).compiled, compiled + 1);
        assert_non_null(strstr(stats_of(n).last_error, "the cached object"));
    }
    rdu_native_close(&n);
}

static void without_a_compiler_the_interpreter_serves(void **state)
{
    static const struct {
        const char *compiler, *said;
    } bad[] = {{"", "there is no C compiler"},
               {"no-such-compiler-anywhere", "there is no C compiler"},
               {"false", "failed (exit 1): it said nothing"},
               {"/dev/null", "there is no C compiler"}};
    float a[N], b[N];
    value_of(NULL, softmax, a);
    for (size_t i = 0; i < BASE_COUNT(bad); i++) {
        struct rdu_native *n = service(bad[i].compiler, 0);
        assert_false(value_of(n, softmax, b));
        assert_memory_equal(a, b, sizeof(a));
        assert_int_equal(stats_of(n).failed, 1);
        if (strstr(stats_of(n).last_error, bad[i].said) == NULL)
            fail_msg("%s said: %s", bad[i].compiler, stats_of(n).last_error);
        rdu_native_close(&n);
    }
}

/* A compiler that never ends, as a script. */
static void a_compiler_that_hangs_is_ended(void **state)
{
    char path[200];
    float a[N];
    snprintf(path, sizeof(path), "%s/slow", dir);
    FILE *f = fopen(path, "w");
    fputs("#!/bin/sh\nsleep 1000\n", f);
    fclose(f);
    chmod(path, 0700);
    struct rdu_native *n = NULL;
    struct rdu_native_options o = {.compiler = path, .dir = dir, .timeout_ms = 100};
    assert_int_equal(rdu_native_open(&o, &n, NULL), ERR_OK);
    assert_false(value_of(n, softmax, a));
    assert_non_null(strstr(stats_of(n).last_error, "took more than 100 ms"));
    rdu_native_close(&n);
}

static void a_cache_without_room_keeps_what_was_used_last(void **state)
{
    float a[N];
    char path[200], text[40];
    struct stat st;
    if (!have_compiler)
        skip();
    struct rdu_native *n = service("cc", 0);
    assert_true(value_of(n, "x + 1", a));
    object_path(path, sizeof(path));
    assert_int_equal(stat(path, &st), 0);
    rdu_native_close(&n);
    n = service("cc", (uint64_t)st.st_size * 5 / 2);
    for (int i = 2; i < 5; i++) {
        snprintf(text, sizeof(text), "x + %d", i);
        assert_true(value_of(n, text, a));
    }
    uint64_t compiled = stats_of(n).compiled;
    assert_true(value_of(n, "x + 4", a));
    assert_int_equal(stats_of(n).compiled, compiled);
    assert_true(value_of(n, "x + 1", a));
    assert_int_equal(stats_of(n).compiled, compiled + 1);
    rdu_native_close(&n);
    n = service("cc", 100); /* nothing fits: loaded all the same */
    assert_true(value_of(n, "x + 9", a));
    assert_int_equal(stats_of(n).not_stored, 1);
    assert_non_null(strstr(stats_of(n).last_error, "does not fit the cache of 100"));
    rdu_native_close(&n);
}

static void a_cache_that_is_no_directory_is_refused(void **state)
{
    char path[200];
    struct rdu_native *n = NULL;
    struct err e = {0};
    snprintf(path, sizeof(path), "%s/file", dir);
    FILE *f = fopen(path, "w");
    fclose(f);
    struct rdu_native_options o = {.compiler = "cc", .dir = path};
    assert_int_not_equal(rdu_native_open(&o, &n, &e), ERR_OK);
    assert_non_null(strstr(e.msg, path));
}

int main(void)
{
#define IN_DIR(t) cmocka_unit_test_setup_teardown(t, fresh_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        IN_DIR(compiled_expressions_give_the_same_bits),
        IN_DIR(a_second_start_compiles_nothing),
        IN_DIR(an_object_that_is_not_as_it_was_stored_is_never_loaded),
        IN_DIR(without_a_compiler_the_interpreter_serves),
        IN_DIR(a_compiler_that_hangs_is_ended),
        IN_DIR(a_cache_without_room_keeps_what_was_used_last),
        IN_DIR(a_cache_that_is_no_directory_is_refused),
    };
    fresh_dir(NULL);
    struct rdu_native *n = service("cc", 0);
    have_compiler = rdu_native_compiler(n) != NULL;
    rdu_native_close(&n);
    remove_dir(NULL);
    if (!have_compiler)
        print_message("this machine has no C compiler: most is skipped\n");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
