/* Whole files: bounds, and that a write is seen old or new but never torn. */
#include "unit.h"

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char root[64];

static int setup(void **state)
{
    (void)snprintf(root, sizeof(root), "/tmp/switchyard-file-XXXXXX");
    return mkdtemp(root) == NULL;
}

static int teardown(void **state)
{
    char command[100];
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", root);
    return system(command);
}

static char *in_root(const char *name)
{
    return mem_format("%s/%s", root, name);
}

static size_t entries(const char *dir)
{
    size_t count = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *entry; (entry = readdir(d)) != NULL;)
        count += entry->d_name[0] != '.';
    (void)closedir(d);
    return count;
}

static void what_was_written_is_read(void **state)
{
    char *path = in_root("round");
    static char data[100000];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (char)(i * 31 >> 3);
    const size_t sizes[] = {0, 1, 4096, 16384, 16385, sizeof(data)};
    for (size_t i = 0; i < BASE_COUNT(sizes); i++) {
        struct buf b = {0};
        assert_int_equal(file_write_atomic(path, data, sizes[i], NULL), ERR_OK);
        assert_int_equal(file_read(path, sizes[i], &b, NULL), ERR_OK);
        assert_int_equal(b.len, sizes[i]);
        assert_memory_equal(b.data, data, sizes[i]);
        assert_int_equal(b.data[b.len], '\0');
        buf_done(&b);
    }
    free(path);
}

static void read_refuses_more_than_the_bound(void **state)
{
    char *path = in_root("big");
    struct buf b = {0};
    struct err e;
    assert_int_equal(file_write_atomic(path, "12345", 5, NULL), ERR_OK);
    assert_int_equal(file_read(path, 4, &b, &e), ERR_TOO_LARGE);
    assert_null(b.data);
    /* A file without a size to ask for beforehand is bounded as well. */
    assert_int_equal(file_read("/dev/zero", 100000, &b, &e), ERR_TOO_LARGE);
    assert_null(b.data);
    assert_int_equal(file_read("/proc/self/status", 1000000, &b, &e), ERR_OK);
    assert_true(b.len > 100);
    buf_done(&b);
    free(path);
}

static void missing_files_and_directories_are_told_apart(void **state)
{
    char *missing = in_root("missing");
    struct buf b = {0};
    struct err e;
    assert_int_equal(file_read(missing, 10, &b, &e), ERR_NOT_FOUND);
    assert_non_null(strstr(e.msg, missing));
    assert_int_equal(file_read(root, 10, &b, &e), ERR_IO);
    assert_non_null(strstr(e.msg, "is a directory"));
    free(missing);
}

static void a_failed_write_leaves_the_old_file_and_no_litter(void **state)
{
    char *dir = in_root("full"), *path = in_root("full/file");
    assert_int_equal(file_mkdirs(dir, NULL), ERR_OK);
    assert_int_equal(file_write_atomic(path, "old", 3, NULL), ERR_OK);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit limit = {.rlim_cur = 10000, .rlim_max = 10000};
        static char data[20000];
        struct err e;
        (void)signal(SIGXFSZ, SIG_IGN);
        (void)setrlimit(RLIMIT_FSIZE, &limit);
        enum err_code rc = file_write_atomic(path, data, sizeof(data), &e);
        _exit(rc == ERR_IO && e.os_errno != 0 ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    struct buf b = {0};
    assert_int_equal(file_read(path, 100, &b, NULL), ERR_OK);
    assert_string_equal(b.data, "old");
    assert_int_equal(entries(dir), 1);
    buf_done(&b);
    struct err e;
    assert_int_equal(file_write_atomic("/nonexistent/dir/file", "x", 1, &e), ERR_NOT_FOUND);
    free(dir);
    free(path);
}

enum { TEXT_BYTES = 50000 };

/* A reader at any moment, and after a kill at any moment, sees one whole version. */
static void readers_never_see_a_torn_file(void **state)
{
    char *path = in_root("torn");
    static char data[TEXT_BYTES];
    memset(data, 'a', sizeof(data));
    assert_int_equal(file_write_atomic(path, data, sizeof(data), NULL), ERR_OK);
    for (int round = 0; round < 10; round++) {
        pid_t child = fork();
        if (child == 0) {
            for (char c = 'b';; c = c == 'z' ? 'a' : (char)(c + 1)) {
                memset(data, c, sizeof(data));
                if (file_write_atomic(path, data, sizeof(data), NULL) != ERR_OK)
                    _exit(1);
            }
        }
        for (int i = 0; i < 40; i++) {
            if (i == 39) {
                (void)kill(child, SIGKILL);
                (void)waitpid(child, NULL, 0);
            }
            struct buf b = {0};
            assert_int_equal(file_read(path, TEXT_BYTES, &b, NULL), ERR_OK);
            assert_int_equal(b.len, TEXT_BYTES);
            for (size_t k = 1; k < b.len; k++) {
                if (b.data[k] != b.data[0])
                    fail_msg("torn at byte %zu", k);
            }
            buf_done(&b);
        }
    }
    free(path);
}

static void *write_often(void *opaque)
{
    char data[1000];
    memset(data, 'x', sizeof(data));
    uintptr_t failures = 0;
    for (int i = 0; i < 200; i++)
        failures += file_write_atomic(opaque, data, sizeof(data), NULL) != ERR_OK;
    return (void *)failures;
}

static void threads_may_write_the_same_file(void **state)
{
    char *path = in_root("shared");
    pthread_t threads[3];
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(thread_start(&threads[i], "writer", write_often, path, NULL), ERR_OK);
    for (size_t i = 0; i < 3; i++) {
        void *failures;
        (void)pthread_join(threads[i], &failures);
        assert_null(failures);
    }
    free(path);
}

static void a_file_keeps_its_mode(void **state)
{
    char *path = in_root("secret");
    struct stat st;
    assert_int_equal(file_write_atomic(path, "a", 1, NULL), ERR_OK);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(file_write_atomic(path, "b", 1, NULL), ERR_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
    free(path);
}

static void directories_are_made_with_their_parents(void **state)
{
    char *deep = in_root("a/b//c/d/"), *file = in_root("plain"), *below = in_root("plain/x");
    struct stat st;
    struct err e;
    assert_int_equal(file_mkdirs(deep, NULL), ERR_OK);
    assert_int_equal(stat(deep, &st), 0);
    assert_true(S_ISDIR(st.st_mode));
    assert_int_equal(file_mkdirs(deep, NULL), ERR_OK);
    assert_int_equal(file_mkdirs("/", NULL), ERR_OK);
    assert_int_equal(file_mkdirs("", &e), ERR_INVALID);
    assert_int_equal(file_write_atomic(file, "", 0, NULL), ERR_OK);
    assert_int_equal(file_mkdirs(file, &e), ERR_IO);
    assert_non_null(strstr(e.msg, "not a directory"));
    assert_int_equal(file_mkdirs(below, &e), ERR_IO);
    free(deep);
    free(file);
    free(below);
}

static bool stop_at_half(void *ctx, const char *what, uint64_t done, uint64_t total)
{
    assert_string_equal(what, "import");
    ++*(int *)ctx;
    return done * 2 < total;
}

static void progress_asks_the_caller_and_none_goes_on(void **state)
{
    int calls = 0;
    struct progress p = {.report = stop_at_half, .ctx = &calls}, silent = {0};
    assert_true(progress_report(NULL, "x", 1, 2));
    assert_true(progress_report(&silent, "x", 1, 2));
    assert_true(progress_report(&p, "import", 1, 4));
    assert_false(progress_report(&p, "import", 2, 4));
    assert_int_equal(calls, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read),
        cmocka_unit_test(read_refuses_more_than_the_bound),
        cmocka_unit_test(missing_files_and_directories_are_told_apart),
        cmocka_unit_test(a_failed_write_leaves_the_old_file_and_no_litter),
        cmocka_unit_test(readers_never_see_a_torn_file),
        cmocka_unit_test(threads_may_write_the_same_file),
        cmocka_unit_test(a_file_keeps_its_mode),
        cmocka_unit_test(directories_are_made_with_their_parents),
        cmocka_unit_test(progress_asks_the_caller_and_none_goes_on),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
