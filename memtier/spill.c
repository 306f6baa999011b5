/* KV pages on disk. An idle page is written to the spill file before its memory is wanted, while
 * the pool is filling up, so that evicting it later moves no byte; its record then stays without
 * memory, and a reservation loads it like any segment, checked against the hash of what was
 * written. A page goes there only if reading it back is expected to take less than making it again.
 * The file is emptied at open and means nothing to the next process. Engine thread; the writes are
 * the loader's, behind every demand load. */
#include "memtier/residency.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define WRITES_MAX 4
#define PROBE_BYTES ((size_t)8 << 20)

/* ---- lists: a page is in at most one ---- */

static void list_push(struct page_list *l, struct seg *s)
{
    assert(s->list == NULL);
    s->list = l;
    s->list_next = NULL;
    s->list_prev = l->last;
    if (l->last)
        l->last->list_next = s;
    else
        l->first = s;
    l->last = s;
}

static void list_remove(struct seg *s)
{
    struct page_list *l = s->list;
    if (l == NULL)
        return;
    if (s->list_prev)
        s->list_prev->list_next = s->list_next;
    else
        l->first = s->list_next;
    if (s->list_next)
        s->list_next->list_prev = s->list_prev;
    else
        l->last = s->list_prev;
    s->list = NULL;
}

/* ---- the file ---- */

/* Bytes/s of reading back what was just written, as the loader will: directly where that is
 * allowed. */
static double probe(const char *path, bool direct)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | (direct ? O_DIRECT : 0));
    if (fd < 0)
        return 0;
    void *block = aligned_alloc(MEMTIER_ALIGN, PROBE_BYTES);
    if (block == NULL)
        abort();
    memset(block, 1, PROBE_BYTES);
    double rate = 0;
    if (pwrite(fd, block, PROBE_BYTES, 0) == (ssize_t)PROBE_BYTES) {
        uint64_t start = clock_ns();
        if (pread(fd, block, PROBE_BYTES, 0) == (ssize_t)PROBE_BYTES)
            rate = (double)PROBE_BYTES * 1e9 / (double)(clock_ns() - start + 1);
    }
    free(block);
    close(fd);
    return rate;
}

static enum err_code make_file(const char *path, uint64_t bytes, struct err *e)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) {
        err_set_errno(e, ERR_IO, "cannot make the spill file %s", path);
        if (fd >= 0)
            close(fd);
        return ERR_IO;
    }
    close(fd);
    return ERR_OK;
}

enum err_code spill_open(struct memtier *m, struct err *e)
{
    struct spill *p = &m->spill;
    struct statvfs fs;
    uint64_t bytes = m->opt.spill_bytes / POOL_GRANULE * POOL_GRANULE;
    if (bytes < PROBE_BYTES)
        return ERR_OK;
    p->file.path = mem_format("%s/spill", memtier_store_path(m->store));
    p->file.fd = -1;
    p->file.slot = -1;
    p->file.writable = true;
    if (statvfs(memtier_store_path(m->store), &fs) == 0)
        bytes =
            BASE_MIN(bytes, (uint64_t)fs.f_bavail * fs.f_frsize / 2 / POOL_GRANULE * POOL_GRANULE);
    if (bytes < PROBE_BYTES) {
        free(p->file.path);
        p->file.path = NULL;
        return ERR_OK; /* a full disk is no reason not to serve */
    }
    enum err_code rc = make_file(p->file.path, bytes, e);
    if (rc != ERR_OK)
        return rc;
    p->rate = m->opt.spill_rate > 0 ? m->opt.spill_rate : probe(p->file.path, true);
    if (p->rate <= 0)
        p->rate = probe(p->file.path, false);
    p->file.bytes = bytes;
    extents_init(&p->extents, (uint32_t)(bytes / POOL_GRANULE), (uint32_t)(bytes / POOL_GRANULE));
    p->on = p->rate > 0;
    return ERR_OK;
}

void spill_close(struct memtier *m)
{
    struct spill *p = &m->spill;
    if (p->file.path == NULL)
        return;
    if (p->file.bytes > 0)
        extents_done(&p->extents);
    unlink(p->file.path);
    free(p->file.path);
}

/* ---- pages ---- */

void spill_forget(struct memtier *m, struct seg *s)
{
    list_remove(s);
    if (s->spill == SPILL_HELD) {
        extents_give(&m->spill.extents, s->spill_at);
        m->stats.pages_spilled--;
    }
    s->spill = SPILL_NONE;
}

static bool worth_it(const struct memtier *m, const struct seg *s)
{
    double rate = m->load_rate > 0 ? m->load_rate : m->spill.rate;
    return 1e-4 + (double)s->bytes / rate < s->remake_seconds;
}

void spill_idle(struct memtier *m, struct seg *s)
{
    if (m->spill.on && s->spill == SPILL_NONE && s->list == NULL && worth_it(m, s))
        list_push(&m->spill.dirty, s);
}

void spill_used(struct seg *s)
{
    list_remove(s);
}

bool spill_evicted(struct memtier *m, struct seg *s)
{
    list_remove(s);
    if (s->spill != SPILL_HELD)
        return false;
    list_push(&m->spill.away, s);
    return true;
}

/* Room in the file; those that have been away longest make it. */
static uint32_t file_room(struct memtier *m, uint32_t granules)
{
    struct spill *p = &m->spill;
    for (;;) {
        uint32_t at = extents_find_low(&p->extents, granules);
        struct seg *oldest = p->away.first;
        if (at != POOL_NONE || oldest == NULL)
            return at;
        if (oldest->state != SEG_ABSENT) { /* on its way back */
            list_remove(oldest);
            continue;
        }
        page_gone_for_good(m, oldest);
    }
}

static bool start_write(struct memtier *m, struct seg *s)
{
    struct spill *p = &m->spill;
    uint32_t at = file_room(m, s->granules);
    if (at == POOL_NONE)
        return false;
    extents_take(&p->extents, at, s->granules, s->idx);
    s->spill_at = at;
    s->spill = SPILL_WRITING;
    tally(m, s, -1);
    s->pins++; /* it must not move while it is read */
    tally(m, s, 1);
    s->demote = (struct load_job){.kind = JOB_WRITE,
                                  .owner = s,
                                  .file = &p->file,
                                  .bytes = s->bytes,
                                  .file_offset = (uint64_t)at * POOL_GRANULE,
                                  .dst = pool_at(&m->hbm, s->at),
                                  .prefetch = true,
                                  .submit_ns = clock_ns()};
    loader_submit(m->loader, &s->demote);
    m->jobs_out++;
    p->out++;
    return true;
}

void spill_clean(struct memtier *m)
{
    struct spill *p = &m->spill;
    const struct extents *x = &m->hbm.extents;
    bool any = false;
    while (p->on && p->dirty.first && p->out < WRITES_MAX &&
           (uint64_t)x->used * 4 > (uint64_t)x->limit * 3 && m->jobs_out < JOBS_MAX) {
        struct seg *s = p->dirty.first;
        list_remove(s);
        if (s->state == SEG_RESIDENT && s->pins == 0 && s->sealed) /* a lease may have it */
            any |= start_write(m, s);
    }
    if (any)
        publish_stats(m);
}

void spill_written(struct memtier *m, struct seg *s)
{
    struct spill *p = &m->spill;
    bool ok = s->demote.result == JOB_DONE;
    p->out--;
    free(s->demote.why);
    s->demote.why = NULL;
    if (ok) {
        s->spill = SPILL_HELD;
        s->file = &p->file;
        s->file_offset = s->demote.file_offset;
        s->hash = s->demote.hash;
        s->verified = false;
        m->stats.pages_spilled++;
        m->stats.spill_bytes += s->bytes;
    } else {
        extents_give(&p->extents, s->spill_at);
        s->spill = SPILL_NONE;
        p->on = s->demote.result == JOB_CANCELLED &&
                p->on; /* a disk that cannot be written: not again */
    }
    page_unpin(m, s);
}
