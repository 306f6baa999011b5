/* 122 malformed GGUF files, made from a small model by the fixture's own generator, added to a
 * store as a user would: each must be refused, accepted, or either, as the manifest says; in its
 * own process, within 5 seconds and 256 MiB. A refused file must leave nothing behind, one that
 * must be accepted gives the golden tokens of the model it was made from, and whatever was accepted
 * can be talked to. */
#include "tests/unit/experts/unit.h"
#include "tests/unit/experts/unit_serve.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILES_WANTED 122
#define SECONDS_MAX 5
#define MEMORY_MAX ((rlim_t)256 << 20)

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifndef WITH_ASAN
#define WITH_ASAN 0
#endif

static bool make_files(const char *maker, const char *base, const char *dir)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, STDOUT_FILENO);
        execlp("python3", "python3", maker, base, dir, (char *)NULL);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
        print_message("python3 is not here: skipped\n");
        return false;
    }
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return true;
}

/* Addresses while importing; the sanitizer's shadow is an address space of its own. */
static bool limit_memory(rlim_t bytes)
{
    struct rlimit r;
    if (WITH_ASAN)
        return true;
    if (getrlimit(RLIMIT_AS, &r) != 0)
        return false;
    r.rlim_cur = BASE_MIN(bytes, r.rlim_max);
    return setrlimit(RLIMIT_AS, &r) == 0;
}

static bool memory_was_small(void)
{
    struct rusage u;
    return WITH_ASAN ||
           (getrusage(RUSAGE_SELF, &u) == 0 && (rlim_t)u.ru_maxrss * 1024 < MEMORY_MAX);
}

/* In the child: what was accepted must serve, and `golden` files exactly. */
static bool serves(struct memtier_store *store, const char *golden, struct err *e)
{
    struct unit_server s;
    enum err_code rc = unit_server_open(&s, store, e);
    struct expert *ex = rc == ERR_OK ? experts_find(s.experts, "x") : NULL;
    if (!ex)
        return false;
    rc = unit_server_say(&s, ex, "In the beginning", 16, e);
    /* A well-formed refusal to run is fine, a bug of ours is not. */
    bool ok = rc != ERR_INTERNAL && (!golden || rc == ERR_OK);
    if (ok && golden)
        ok = unit_server_golden(&s, ex, golden, "tiny-llama-q4_0.gguf", 16, e) == ERR_OK;
    unit_server_close(&s);
    return ok;
}

/* In the child: exit code 0 = accepted, 1 = refused as it should be done, else broken. */
static int add_one(const char *file, const char *store_dir, const char *golden)
{
    struct memtier_store *s = NULL;
    struct err e = {0};
    alarm(SECONDS_MAX);
    if (!limit_memory(MEMORY_MAX))
        return 10;
    if (memtier_store_open(store_dir, MEMTIER_WRITE, &s, &e) != ERR_OK)
        return 11;
    enum err_code rc = unit_add(s, file, "x", NULL, NULL, &e);
    /* Threads reserve addresses, not memory: from here on only what is really used counts. */
    if (!limit_memory(RLIM_INFINITY))
        return 10;
    size_t objects = memtier_store_objects(s);
    int verdict = 12;
    if (rc == ERR_OK && objects == 2 && !serves(s, golden, &e)) {
        fprintf(stderr, "%s: does not serve: %s\n", file, e.msg);
        verdict = 15;
    } else if (rc == ERR_OK && objects == 2) {
        verdict = experts_remove(s, "x", &e) == ERR_OK ? 0 : 13;
    } else if (rc != ERR_OK && objects == 0 && e.code == rc &&
               strstr(e.msg, strrchr(file, '/') + 1)) {
        verdict = 1;
    } else {
        fprintf(stderr, "%s: rc %s, %zu objects, message '%s'\n", file, err_code_name(rc), objects,
                e.msg);
    }
    /* Machine trouble or a bug of ours must not pass for the file's fault. */
    if (rc == ERR_INTERNAL || rc == ERR_IO || rc == ERR_NO_MEMORY)
        verdict = 14;
    if (!memory_was_small())
        verdict = 16;
    memtier_store_close(&s);
    return verdict;
}

static bool check_one(const char *dir, const json_t *entry)
{
    const char *name = json_string_value(json_object_get(entry, "file"));
    const char *expect = json_string_value(json_object_get(entry, "expect"));
    assert_non_null(name);
    assert_non_null(expect);
    char *file = unit_path(dir, name), *golden = unit_data("tiny/golden.jsonl");
    char *store_dir = mem_format("%s/store-of-%s", dir, name);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(add_one(file, store_dir, strcmp(expect, "accept") == 0 ? golden : NULL));
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 100 + WTERMSIG(status);
    bool ok = strcmp(expect, "accept") == 0   ? code == 0
              : strcmp(expect, "refuse") == 0 ? code == 1
                                              : code == 0 || code == 1;
    if (!ok)
        print_message("%s: expected %s, got %d (0 accepted, 1 refused, 100 + signal): %s\n", name,
                      expect, code, json_string_value(json_object_get(entry, "why")));
    free(store_dir);
    free(golden);
    free(file);
    return ok;
}

static void every_malformed_file_gets_its_verdict(void **state)
{
    char *maker = unit_shared("fixtures/corrupt/make.py"),
         *base = unit_data("tiny/tiny-llama-q4_0.gguf");
    if (!maker) {
        free(base);
        skip();
    }
    char *dir = unit_dir_open(), *manifest = unit_path(dir, "manifest.json");
    bool made = make_files(maker, base, dir);
    json_error_t je;
    json_t *list = made ? json_load_file(manifest, 0, &je) : NULL;
    size_t bad = 0, count = json_array_size(list);
    for (size_t i = 0; i < count; i++)
        bad += !check_one(dir, json_array_get(list, i));
    json_decref(list);
    free(manifest);
    free(base);
    free(maker);
    unit_dir_close(&dir);
    if (!made)
        skip();
    assert_true(count >= FILES_WANTED);
    assert_int_equal(bad, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_malformed_file_gets_its_verdict),
    };
    return cmocka_run_group_tests_name("gguf_corrupt", tests, NULL, NULL);
}
