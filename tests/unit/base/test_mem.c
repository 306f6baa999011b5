/* Allocation, the growable buffer and the arena; running out aborts in a child. */
#include "unit.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

static void allocations_are_zeroed(void **state)
{
    unsigned char *p = mem_array(1000, 3);
    for (size_t i = 0; i < 3000; i++)
        assert_int_equal(p[i], 0);
    free(p);
    void *empty = mem_alloc(0);
    assert_non_null(empty);
    free(empty);
}

static void overflowing_array_aborts(void **state)
{
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_WRONLY);
        (void)dup2(null, STDERR_FILENO);
        free(mem_array(SIZE_MAX / 2, 3));
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
}

static void strings_are_copied_up_to_their_end(void **state)
{
    char *a = mem_strdup("abc"), *b = mem_strndup("abcdef", 2), *c = mem_strndup("ab", 100);
    char *d = mem_format("%s-%d", "n", 7);
    assert_string_equal(a, "abc");
    assert_string_equal(b, "ab");
    assert_string_equal(c, "ab");
    assert_string_equal(d, "n-7");
    free(a);
    free(b);
    free(c);
    free(d);
}

static void buffer_grows_and_stays_terminated(void **state)
{
    struct buf b = {0};
    buf_append(&b, NULL, 0);
    assert_string_equal(b.data, "");
    char want[40000] = "";
    size_t len = 0;
    for (int i = 0; i < 3000; i++) {
        buf_printf(&b, "%d,", i);
        len += (size_t)snprintf(want + len, sizeof(want) - len, "%d,", i);
        assert_int_equal(b.len, len);
        assert_int_equal(b.data[b.len], '\0');
        assert_true(b.cap > b.len);
    }
    assert_string_equal(b.data, want);
    size_t cap = b.cap;
    buf_clear(&b);
    assert_int_equal(b.len, 0);
    assert_int_equal(b.cap, cap);
    assert_string_equal(b.data, "");
    buf_append(&b, "a\0b", 3);
    buf_puts(&b, "c");
    assert_memory_equal(b.data, "a\0bc", 5);
    buf_done(&b);
    assert_null(b.data);
    buf_done(&b);
}

static void printing_at_every_fill_level_is_exact(void **state)
{
    /* The formatted text may just fit, just not fit, or need several doublings. */
    for (size_t before = 0; before < 140; before++) {
        for (int width = 0; width < 140; width += 7) {
            struct buf b = {0};
            for (size_t i = 0; i < before; i++)
                buf_append(&b, "x", 1);
            buf_printf(&b, "%*s", width, "");
            assert_int_equal(b.len, before + (size_t)width);
            assert_int_equal(b.data[b.len], '\0');
            buf_done(&b);
        }
    }
}

static void arena_blocks_are_aligned_zeroed_and_apart(void **state)
{
    struct rng r;
    rng_init(&r, unit_seed());
    struct arena a;
    arena_init(&a, 4096);
    enum { N = 500 };
    unsigned char *p[N];
    size_t size[N];
    for (size_t i = 0; i < N; i++) {
        size[i] = rng_below(&r, i % 10 == 0 ? 20000 : 300);
        p[i] = arena_alloc(&a, size[i]);
        assert_int_equal((uintptr_t)p[i] % 64, 0);
        for (size_t k = 0; k < size[i]; k++)
            assert_int_equal(p[i][k], 0);
        memset(p[i], (int)(i & 0xff), size[i]);
    }
    for (size_t i = 0; i < N; i++) {
        for (size_t k = 0; k < size[i]; k++)
            assert_int_equal(p[i][k], i & 0xff);
    }
    assert_string_equal(arena_strndup(&a, "hello", 3), "hel");
    arena_done(&a);
    arena_done(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(allocations_are_zeroed),
        cmocka_unit_test(overflowing_array_aborts),
        cmocka_unit_test(strings_are_copied_up_to_their_end),
        cmocka_unit_test(buffer_grows_and_stays_terminated),
        cmocka_unit_test(printing_at_every_fill_level_is_exact),
        cmocka_unit_test(arena_blocks_are_aligned_zeroed_and_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
