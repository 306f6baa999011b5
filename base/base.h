/* base/: what every other room needs and nothing more: errors, checked arithmetic, clocks, buffers,
 * arenas, bounded rings, named threads and ranked locks, hashing, random numbers, histograms, UTF-8,
 * whole-file I/O. Depends on the C library and xxhash only. Nothing here logs or exits. */
#ifndef SWITCHYARD_BASE_H
#define SWITCHYARD_BASE_H

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define BASE_PRINTF(fmt_idx, arg_idx)                                                              \
    __attribute__((format(printf, fmt_idx, arg_idx), nonnull(fmt_idx)))
#define BASE_NODISCARD __attribute__((warn_unused_result))
#define BASE_MIN(a, b) ((a) < (b) ? (a) : (b))
#define BASE_MAX(a, b) ((a) > (b) ? (a) : (b))
#define BASE_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define BASE_KIB ((size_t)1 << 10)
#define BASE_MIB ((size_t)1 << 20)
#define BASE_GIB ((size_t)1 << 30)

/* ---- errors ------------------------------------------------------------------------------- */

/* One list: identifier, string code of the API's error body, HTTP status.
 * Bad request, overload, machine trouble and bugs stay apart. */
#define ERR_CODES(X)                                                                               \
    X(ERR_OK, "ok", 200)                                                                           \
    X(ERR_INVALID, "invalid_value", 400)              /* the caller's input is wrong */            \
    X(ERR_CONTEXT, "context_length_exceeded", 400)    /* prompt longer than the context */         \
    X(ERR_UNSUPPORTED, "unsupported_value", 400)      /* meaningful, but not done here */          \
    X(ERR_AUTH, "invalid_api_key", 401)                                                            \
    X(ERR_PERMISSION, "permission_error", 403)                                                     \
    X(ERR_NOT_FOUND, "not_found", 404)                                                             \
    X(ERR_MODEL, "model_not_found", 404)                                                           \
    X(ERR_EXISTS, "already_exists", 409)                                                           \
    X(ERR_TOO_LARGE, "too_large", 413)                                                             \
    X(ERR_RATE, "rate_limit_exceeded", 429)                                                        \
    X(ERR_CANCELLED, "cancelled", 499)                                                             \
    X(ERR_QUEUE_FULL, "queue_full", 503)                                                           \
    X(ERR_LOADING, "model_loading", 503)                                                           \
    X(ERR_LOAD_FAILED, "model_load_failed", 503)                                                   \
    X(ERR_SHUTDOWN, "shutting_down", 503)                                                          \
    X(ERR_BUSY, "busy", 503)                          /* not now: pinned, locked, in use */        \
    X(ERR_NO_MEMORY, "insufficient_memory", 507)      /* can never fit the budgets */              \
    X(ERR_CORRUPT, "corrupt_data", 500)               /* a file of ours or a model file is torn */ \
    X(ERR_IO, "io_error", 500)                                                                     \
    X(ERR_INTERNAL, "internal_error", 500)

enum err_code {
#define ERR_ENUM(id, code, status) id,
    ERR_CODES(ERR_ENUM)
#undef ERR_ENUM
};

/* Caller-owned, passed last, written only on failure. `param` names the offending request field or
 * configuration key, "" if none. */
struct err {
    enum err_code code;
    int os_errno; /* 0 if no system call failed */
    char param[96];
    char msg[600];
};

const char *err_code_name(enum err_code code); /* "invalid_value" */
int err_http_status(enum err_code code);

/* Fill `e` (NULL allowed) and return `code`, so that failing is one statement. */
enum err_code err_set(struct err *e, enum err_code code, const char *fmt, ...) BASE_PRINTF(3, 4);
/* As err_set, with errno's number and text appended. */
enum err_code err_set_errno(struct err *e, enum err_code code, const char *fmt, ...)
    BASE_PRINTF(3, 4);
/* As err_set, naming the request field or key. */
enum err_code err_set_param(struct err *e, enum err_code code, const char *param, const char *fmt,
                            ...) BASE_PRINTF(4, 5);
/* Put "context: " before the message on the way up; returns e->code (ERR_INTERNAL if e is NULL). */
enum err_code err_wrap(struct err *e, const char *fmt, ...) BASE_PRINTF(2, 3);

/* ---- checked arithmetic: sizes that come from files or clients go through these ------------- */

static inline bool size_mul(size_t a, size_t b, size_t *ret)
{
    return !__builtin_mul_overflow(a, b, ret);
}
static inline bool size_add(size_t a, size_t b, size_t *ret)
{
    return !__builtin_add_overflow(a, b, ret);
}
/* Round up to a power of two; false on overflow. */
bool size_align(size_t v, size_t align, size_t *ret);
/* "512MiB", "1.5 GiB", "4096" -> bytes. KiB, MiB, GiB, TiB, B or none. */
enum err_code size_parse(const char *text, uint64_t *ret_bytes, struct err *e) BASE_NODISCARD;
/* "143.0 MiB"; returns `buf`. */
const char *size_format(uint64_t bytes, char *buf, size_t cap);

/* ---- clocks -------------------------------------------------------------------------------- */

uint64_t clock_ns(void);        /* CLOCK_MONOTONIC: host time, ns */
uint64_t clock_thread_ns(void); /* CLOCK_THREAD_CPUTIME_ID */
uint64_t clock_wall_ms(void);   /* CLOCK_REALTIME: stamps for people, never for durations */

/* ---- memory -------------------------------------------------------------------------------- */

/* malloc family that aborts with a message when the machine is out of memory. For small, bounded
 * allocations at open and on request threads; large memory is mapped by its owner. */
void *mem_alloc(size_t bytes);                    /* zeroed */
void *mem_array(size_t count, size_t elem_bytes); /* zeroed; aborts on overflow */
void *mem_grow(void *old, size_t count, size_t elem_bytes);
char *mem_strdup(const char *s);
char *mem_strndup(const char *s, size_t len);
char *mem_format(const char *fmt, ...) BASE_PRINTF(1, 2);

/* Growable byte buffer, always NUL-terminated past `len` once anything was appended. {0} is empty. */
struct buf {
    char *data;
    size_t len, cap;
};
void buf_append(struct buf *b, const void *data, size_t len);
void buf_puts(struct buf *b, const char *s);
void buf_printf(struct buf *b, const char *fmt, ...) BASE_PRINTF(2, 3);
void buf_clear(struct buf *b); /* len = 0, memory kept */
void buf_done(struct buf *b);

/* Bump allocator over blocks; everything is freed at once. One thread. */
struct arena {
    struct arena_block *head;
    size_t block_bytes;
};
void arena_init(struct arena *a, size_t block_bytes);
void *arena_alloc(struct arena *a, size_t bytes); /* zeroed, 64-byte aligned */
char *arena_strndup(struct arena *a, const char *s, size_t len);
void arena_done(struct arena *a);

/* ---- bounded ring of pointers with a wake-up descriptor -------------------------------------- */

/* Many producers, many consumers, lock-free (Vyukov's bounded queue); ownership moves with the
 * pointer. `ring_fd` is an eventfd that polls readable after a push until ring_drain_fd. */
struct ring;
enum err_code ring_open(struct ring **ret, size_t capacity, struct err *e) BASE_NODISCARD;
void ring_close(struct ring **r); /* what is still inside is the caller's to pop first */
bool ring_push(struct ring *r, void *item);  /* false = full; item must not be NULL */
void *ring_pop(struct ring *r);              /* NULL = empty */
size_t ring_count(const struct ring *r);     /* a snapshot */
int ring_fd(const struct ring *r);
void ring_drain_fd(struct ring *r); /* reset the eventfd before popping everything */
void ring_wake(struct ring *r);     /* make the fd readable without pushing */

/* ---- threads and locks ----------------------------------------------------------------------- */

/* Locks are taken in increasing rank; taking one out of order aborts in debug builds. */
enum lock_rank {
    LOCK_RANK_SERVER = 10,
    LOCK_RANK_SCHED = 20,
    LOCK_RANK_EXPERTS = 30,
    LOCK_RANK_MEMTIER = 40,
    LOCK_RANK_STORE = 50,
    LOCK_RANK_NODE = 60,
    LOCK_RANK_METRICS = 70,
    LOCK_RANK_LOG = 80,
};
struct lock {
    pthread_mutex_t mutex;
    int rank;
    const char *name;
};
void lock_init(struct lock *l, enum lock_rank rank, const char *name);
void lock_done(struct lock *l);
void lock_take(struct lock *l);
void lock_drop(struct lock *l);

/* Start a named thread (name <= 15 bytes) with all signals blocked; join with thread_join. */
enum err_code thread_start(pthread_t *ret, const char *name, void *(*fn)(void *), void *arg,
                           struct err *e) BASE_NODISCARD;
void thread_join(pthread_t t);
/* CPUs this process may use: affinity mask and cgroup quota, at least 1. */
unsigned cpu_count_usable(void);
/* Bytes this process may use: the smaller of physical memory and the cgroup limit. */
uint64_t memory_bytes_usable(void);

/* ---- hashing and random numbers --------------------------------------------------------------- */

struct hash128 {
    uint64_t lo, hi;
};
struct hash128 hash128_of(const void *data, size_t len, uint64_t seed); /* XXH3-128 */
uint64_t hash64_of(const void *data, size_t len, uint64_t seed);        /* XXH3-64 */
bool hash128_equal(struct hash128 a, struct hash128 b);
void hash128_format(struct hash128 h, char out[33]); /* 32 hex digits */
bool hash128_parse(const char *hex, struct hash128 *ret);

/* xoshiro256**; the seed is an argument, never the time. */
struct rng {
    uint64_t s[4];
};
void rng_init(struct rng *r, uint64_t seed);
uint64_t rng_u64(struct rng *r);
double rng_f64(struct rng *r);                   /* [0, 1) */
uint64_t rng_below(struct rng *r, uint64_t n);   /* [0, n), n > 0 */

/* ---- latency histogram -------------------------------------------------------------------------- */

/* Log-linear over ns: 8 sub-buckets per power of two (12.5 % resolution), 1 ns .. ~18 minutes.
 * One writer per histogram or a lock around it; readers may see a torn count, never a crash. */
#define HIST_BUCKETS (41 * 8)
struct hist {
    uint64_t bucket[HIST_BUCKETS];
    uint64_t count, sum_ns, max_ns;
};
void hist_add(struct hist *h, uint64_t ns);
uint64_t hist_quantile(const struct hist *h, double q); /* upper edge of the bucket, ns; 0 if empty */
uint64_t hist_count_below(const struct hist *h, uint64_t ns); /* samples <= ns, for Prometheus */

/* ---- UTF-8 ---------------------------------------------------------------------------------------- */

/* Decode one code point at s[0..len); returns bytes consumed (1..4) and sets *ret_cp, or 0 if the
 * bytes are not valid UTF-8 (overlong, surrogate, > U+10FFFF, truncated). */
unsigned utf8_decode(const char *s, size_t len, uint32_t *ret_cp);
unsigned utf8_encode(uint32_t cp, char out[4]); /* bytes written; cp must be valid */
bool utf8_valid(const char *s, size_t len);
/* Length of the longest prefix of s that does not end inside a multi-byte character. */
size_t utf8_complete_prefix(const char *s, size_t len);

/* ---- files ----------------------------------------------------------------------------------------- */

/* Whole file into *ret (caller frees), at most `max_bytes`. */
enum err_code file_read(const char *path, size_t max_bytes, struct buf *ret, struct err *e)
    BASE_NODISCARD;
/* Write path.tmp.PID, fsync, rename over path, fsync the directory: old or new, never torn. */
enum err_code file_write_atomic(const char *path, const void *data, size_t len, struct err *e)
    BASE_NODISCARD;
enum err_code file_mkdirs(const char *path, struct err *e) BASE_NODISCARD; /* mkdir -p, mode 0755 */

/* Progress of long work; the caller decides how to show it (CLI: a bar on stderr). NULL is allowed
 * wherever a `const struct progress *` is taken. Return false from `report` to cancel. */
struct progress {
    bool (*report)(void *ctx, const char *what, uint64_t done, uint64_t total);
    void *ctx;
};
bool progress_report(const struct progress *p, const char *what, uint64_t done, uint64_t total);

#endif
