/* Running the system's C compiler: in a private directory, at low priority, with a time limit, on
 * text that we wrote. Its output goes to a file whose first lines become the error. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "rdu/emit/emit.h"

#define OBJECT_BYTES_MAX (64 * BASE_MIB)

extern char **environ;

/* ---- which ----------------------------------------------------------------------------------- */

static bool is_program(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

/* As a shell would look, without one. */
static char *find_program(const char *name)
{
    if (strchr(name, '/'))
        return is_program(name) ? mem_strdup(name) : NULL;
    const char *at = getenv("PATH");
    while (at && *name) {
        size_t len = strcspn(at, ":");
        char *path = mem_format("%.*s/%s", (int)len, at, name);
        if (len > 0 && is_program(path))
            return path;
        free(path);
        at = at[len] ? at + len + 1 : NULL;
    }
    return NULL;
}

static void add_flag(struct emit_cc *cc, const char *flag)
{
    cc->flags[cc->flags_count++] = flag;
}

static void add_isa_flags(struct emit_cc *cc, const char *isa)
{
    if (strncmp(isa, "avx512", 6) == 0) {
        add_flag(cc, "-mavx512f");
        add_flag(cc, "-mavx512bw");
        add_flag(cc, "-mavx512dq");
        add_flag(cc, "-mavx512vl");
        add_flag(cc, "-mprefer-vector-width=512");
    }
    if (strncmp(isa, "avx", 3) == 0) {
        add_flag(cc, "-mavx2");
        add_flag(cc, "-mf16c");
        add_flag(cc, "-mfma");
        return;
    }
#ifdef __x86_64__
    if (__builtin_cpu_supports("fma"))
        add_flag(cc, "-mfma"); /* one instruction for what is one operation anyway */
#endif
}

void emit_cc_init(struct emit_cc *cc, const char *name, const char *isa, uint32_t timeout_ms)
{
    static const char *const common[] = {"-std=gnu11",
                                         "-O3",
                                         "-fPIC",
                                         "-shared",
                                         "-w",
                                         "-ffp-contract=off",
                                         "-fno-math-errno",
                                         "-fno-trapping-math"};
    memset(cc, 0, sizeof(*cc));
    cc->timeout_ms = timeout_ms;
    for (size_t i = 0; i < BASE_COUNT(common); i++)
        add_flag(cc, common[i]);
    add_isa_flags(cc, isa);
    cc->path = find_program(name);
    if (cc->path == NULL)
        return;
    char *real = realpath(cc->path, NULL);
    struct stat st = {0};
    if (real == NULL || stat(real, &st) != 0) {
        free(cc->path);
        cc->path = NULL;
    } else {
        cc->identity =
            mem_format("%s %lld %lld", real, (long long)st.st_size, (long long)st.st_mtime);
    }
    free(real);
}

void emit_cc_done(struct emit_cc *cc)
{
    free(cc->path);
    free(cc->identity);
    memset(cc, 0, sizeof(*cc));
}

/* ---- a process ------------------------------------------------------------------------------- */

static enum err_code spawn(const struct emit_cc *cc, const char *dir, const char *source,
                           const char *object, pid_t *ret, struct err *e)
{
    const char *argv[32];
    size_t n = 0;
    argv[n++] = cc->path;
    for (uint32_t i = 0; i < cc->flags_count; i++)
        argv[n++] = cc->flags[i];
    argv[n++] = "-o";
    argv[n++] = object;
    argv[n++] = source;
    argv[n] = NULL;
    char *log = mem_format("%s/log", dir);
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none;
    sigemptyset(&none);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    posix_spawnattr_init(&attr);
    /* Its own group, so that a time limit reaches what it started; our threads block all signals.
     */
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setpgroup(&attr, 0);
    posix_spawnattr_setsigmask(&attr, &none);
    errno = posix_spawn(ret, cc->path, &files, &attr, (char *const *)argv, environ);
    enum err_code rc = ERR_OK;
    if (errno != 0)
        rc = err_set_errno(e, ERR_IO, "cannot start the compiler %s", cc->path);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attr);
    free(log);
    return rc;
}

/* Until it ends, its time is up, or nobody wants it any more. */
static enum err_code wait_for(const struct emit_cc *cc, pid_t pid, const atomic_bool *stop,
                              int *ret_status, struct err *e)
{
    uint64_t end = clock_ns() + (uint64_t)cc->timeout_ms * 1000000u;
    for (;;) {
        pid_t done = waitpid(pid, ret_status, WNOHANG);
        if (done == pid)
            return ERR_OK;
        bool stopped = stop && atomic_load(stop);
        if (done < 0 && errno != EINTR)
            return err_set_errno(e, ERR_IO, "cannot wait for the compiler");
        if (stopped || clock_ns() > end) {
            kill(-pid, SIGKILL);
            waitpid(pid, ret_status, 0);
            if (stopped)
                return err_set(e, ERR_CANCELLED, "stopped while compiling");
            return err_set(e, ERR_BUSY, "the compiler took more than %u ms", cc->timeout_ms);
        }
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
}

/* What the compiler had to say, on one line. */
static enum err_code failed(const struct emit_cc *cc, const char *dir, int status, struct err *e)
{
    struct buf log = {0};
    char *path = mem_format("%s/log", dir);
    if (file_read(path, BASE_MIB, &log, NULL) != ERR_OK || log.len == 0)
        buf_puts(&log, "it said nothing");
    for (size_t i = 0; i < log.len; i++)
        log.data[i] = (unsigned char)log.data[i] < ' ' ? ' ' : log.data[i];
    const char *at = strstr(log.data, "error");
    at = at ? at : log.data;
    if (WIFSIGNALED(status))
        err_set(e, ERR_IO, "the compiler %s was ended by signal %d", cc->path, WTERMSIG(status));
    else
        err_set(e, ERR_IO, "the compiler %s failed (exit %d): %.300s", cc->path,
                WEXITSTATUS(status), at);
    free(path);
    buf_done(&log);
    return ERR_IO;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static enum err_code compile_in(const struct emit_cc *cc, const char *dir, const struct buf *text,
                                const atomic_bool *stop, struct buf *ret, struct err *e)
{
    char *source = mem_format("%s/unit.c", dir), *object = mem_format("%s/unit.so", dir);
    pid_t pid;
    int status = 0;
    enum err_code rc = file_write_atomic(source, text->data, text->len, e);
    if (rc == ERR_OK)
        rc = spawn(cc, dir, source, object, &pid, e);
    if (rc == ERR_OK)
        rc = wait_for(cc, pid, stop, &status, e);
    if (rc == ERR_OK && (!WIFEXITED(status) || WEXITSTATUS(status) != 0))
        rc = failed(cc, dir, status, e);
    if (rc == ERR_OK)
        rc = file_read(object, OBJECT_BYTES_MAX, ret, e);
    free(source);
    free(object);
    return rc;
}

enum err_code emit_cc_run(const struct emit_cc *cc, const char *dir, const struct buf *text,
                          const atomic_bool *stop, struct buf *ret_object, struct err *e)
{
    if (cc->path == NULL)
        return err_set(e, ERR_NOT_FOUND, "there is no C compiler");
    char *private = mem_format("%s/cc-XXXXXX", dir);
    enum err_code rc = ERR_OK;
    if (mkdtemp(private) == NULL)
        rc = err_set_errno(e, ERR_IO, "cannot make a directory to compile in under %s", dir);
    if (rc == ERR_OK) {
        rc = compile_in(cc, private, text, stop, ret_object, e);
        nftw(private, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    }
    free(private);
    return rc;
}
