/* Named threads and ranked locks.
 *
 * Each thread remembers the ranks it holds. Taking a lock whose rank is not above all of them
 * aborts and names both: a deadlock that would need an unlucky schedule becomes one that every run
 * shows. With NDEBUG the bookkeeping is compiled out. */
#include "base/base.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* ---- locks ---- */

#ifndef NDEBUG

enum { HELD_MAX = 16 }; /* twice the number of ranks; more cannot be held in increasing order */

static _Thread_local const struct lock *held[HELD_MAX];
static _Thread_local unsigned held_count;

static void note_take(const struct lock *l)
{
    for (unsigned i = 0; i < held_count; i++) {
        if (held[i]->rank >= l->rank) {
            (void)fprintf(stderr,
                          "switchyard: lock '%s' (rank %d) taken while '%s' (rank %d) is held; "
                          "locks are taken in increasing rank\n",
                          l->name, l->rank, held[i]->name, held[i]->rank);
            abort();
        }
    }
    held[held_count++] = l;
}

static void note_drop(const struct lock *l)
{
    for (unsigned i = held_count; i-- > 0;) {
        if (held[i] == l) {
            memmove(&held[i], &held[i + 1], (held_count - i - 1) * sizeof(held[0]));
            held_count--;
            return;
        }
    }
    (void)fprintf(stderr, "switchyard: lock '%s' dropped by a thread that does not hold it\n",
                  l->name);
    abort();
}

#else

static void note_take(const struct lock *l)
{
    (void)l;
}

static void note_drop(const struct lock *l)
{
    (void)l;
}

#endif

void lock_init(struct lock *l, enum lock_rank rank, const char *name)
{
    (void)pthread_mutex_init(&l->mutex, NULL);
    l->rank = (int)rank;
    l->name = name;
}

void lock_done(struct lock *l)
{
    (void)pthread_mutex_destroy(&l->mutex);
}

void lock_take(struct lock *l)
{
    /* Before blocking: the wrong order is reported even when it would deadlock. */
    note_take(l);
    (void)pthread_mutex_lock(&l->mutex);
}

void lock_drop(struct lock *l)
{
    note_drop(l);
    (void)pthread_mutex_unlock(&l->mutex);
}

/* ---- threads ---- */

struct start {
    void *(*fn)(void *);
    void *arg;
    char name[16]; /* the kernel's limit, NUL included */
};

static void *run_thread(void *opaque)
{
    struct start start = *(struct start *)opaque;
    free(opaque);
    (void)pthread_setname_np(pthread_self(), start.name);
    return start.fn(start.arg);
}

enum err_code thread_start(pthread_t *ret, const char *name, void *(*fn)(void *), void *arg,
                           struct err *e)
{
    struct start *start = mem_alloc(sizeof(*start));
    start->fn = fn;
    start->arg = arg;
    memcpy(start->name, name, strnlen(name, sizeof(start->name) - 1));

    /* The child inherits the mask. Faults stay deliverable: blocked, they kill without a handler.
     */
    sigset_t blocked, saved;
    (void)sigfillset(&blocked);
    const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS};
    for (size_t i = 0; i < BASE_COUNT(faults); i++)
        (void)sigdelset(&blocked, faults[i]);
    (void)pthread_sigmask(SIG_SETMASK, &blocked, &saved);
    pthread_t thread;
    int failed = pthread_create(&thread, NULL, run_thread, start);
    (void)pthread_sigmask(SIG_SETMASK, &saved, NULL);

    if (failed != 0) {
        free(start);
        err_set(e, ERR_IO, "cannot start thread '%s': %s (errno %d); is a process limit reached?",
                name, strerrordesc_np(failed), failed);
        if (e != NULL)
            e->os_errno = failed;
        return ERR_IO;
    }
    *ret = thread;
    return ERR_OK;
}

void thread_join(pthread_t t)
{
    (void)pthread_join(t, NULL);
}
