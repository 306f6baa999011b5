/* Many texts through the encoders, with a file of what was computed before. Vectors do not depend
 * on what else is in a batch, nor on the thread, so a remembered one is the one that would be made.
 */
#include "router/vectors.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK 32 /* texts of one call */
#define CACHE_MAGIC "SWYVECS1"
#define CACHE_BYTES_MAX ((size_t)1 << 30)

struct cache_header {
    char magic[8];
    uint64_t encoder_id, width, count;
};
_Static_assert(sizeof(struct cache_header) == 32, "the header has no padding");

/* Sorted by key; records are {key, width floats}. */
struct cache {
    struct buf file;
    size_t record, count;
};

static struct hash128 key_of(const struct router_turn *t)
{
    return hash128_of(t->text, t->len, 0);
}

static int compare_keys(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct hash128));
}

static void cache_open(struct cache *c, const char *path, const struct router_encoder *n)
{
    struct err e;
    struct cache_header h;
    c->record = sizeof(struct hash128) + n->width * sizeof(float);
    if (path == NULL || file_read(path, CACHE_BYTES_MAX, &c->file, &e) != ERR_OK)
        return;
    if (c->file.len < sizeof(h))
        return;
    memcpy(&h, c->file.data, sizeof(h));
    if (memcmp(h.magic, CACHE_MAGIC, sizeof(h.magic)) == 0 && h.encoder_id == n->id &&
        h.width == n->width && h.count == (c->file.len - sizeof(h)) / c->record &&
        h.count * c->record == c->file.len - sizeof(h))
        c->count = (size_t)h.count;
}

static const float *cache_find(const struct cache *c, struct hash128 key)
{
    const char *records = c->file.data + sizeof(struct cache_header);
    if (c->count == 0)
        return NULL;
    const char *found = bsearch(&key, records, c->count, c->record, compare_keys);
    return found ? (const float *)(const void *)(found + sizeof(key)) : NULL;
}

/* What the file held and what is new; a file near its limit starts anew. */
static enum err_code cache_write(const struct cache *c, const char *path,
                                 const struct router_encoder *n, const struct router_turn *texts,
                                 size_t count, const float *vectors, struct err *e)
{
    size_t record = c->record, kept = 0;
    size_t old = c->count * record < CACHE_BYTES_MAX / 2 ? c->count : 0;
    char *records = mem_array(count + old + 1, record);
    if (old > 0)
        memcpy(records + count * record, c->file.data + sizeof(struct cache_header), old * record);
    for (size_t i = 0; i < count; i++) {
        struct hash128 key = key_of(&texts[i]);
        memcpy(records + i * record, &key, sizeof(key));
        memcpy(records + i * record + sizeof(key), vectors + i * n->width, record - sizeof(key));
    }
    count += old;
    qsort(records, count, record, compare_keys);
    for (size_t i = 0; i < count; i++)
        if (kept == 0 || compare_keys(records + i * record, records + (kept - 1) * record) != 0)
            memmove(records + kept++ * record, records + i * record, record);
    struct cache_header h = {.encoder_id = n->id, .width = n->width, .count = kept};
    struct buf out = {0};
    memcpy(h.magic, CACHE_MAGIC, sizeof(h.magic));
    buf_append(&out, &h, sizeof(h));
    buf_append(&out, records, kept * record);
    enum err_code code = file_write_atomic(path, out.data, out.len, e);
    buf_done(&out);
    free(records);
    return code;
}

/* ---- the work ----------------------------------------------------------------------------------
 */

struct job {
    const struct router_turn *texts;
    const size_t *todo; /* [todo_count] indices into texts */
    size_t todo_count, width;
    float *ret;
    atomic_size_t next, done;
    atomic_bool stop;
};

struct worker {
    struct job *job;
    const struct router_encoder *encoder;
    const struct progress *progress; /* of the first worker only */
    pthread_t thread;
    enum err_code code;
    struct err err;
};

static void *work(void *arg)
{
    struct worker *w = arg;
    struct job *j = w->job;
    float *out = mem_array(CHUNK * j->width, sizeof(*out));
    while (!atomic_load(&j->stop)) {
        struct router_turn texts[CHUNK];
        size_t from = atomic_fetch_add(&j->next, (size_t)CHUNK);
        if (from >= j->todo_count)
            break;
        size_t n = BASE_MIN(j->todo_count - from, (size_t)CHUNK);
        for (size_t i = 0; i < n; i++)
            texts[i] = j->texts[j->todo[from + i]];
        w->code = w->encoder->encode(w->encoder->ctx, texts, n, out, &w->err);
        for (size_t i = 0; w->code == ERR_OK && i < n; i++)
            memcpy(j->ret + j->todo[from + i] * j->width, out + i * j->width,
                   j->width * sizeof(*out));
        size_t done = atomic_fetch_add(&j->done, n) + n;
        if (w->code == ERR_OK && w->progress &&
            !progress_report(w->progress, "encoding", done, j->todo_count))
            w->code = err_set(&w->err, ERR_CANCELLED, "training was cancelled");
        if (w->code != ERR_OK)
            atomic_store(&j->stop, true);
    }
    free(out);
    return NULL;
}

static enum err_code encode_all(struct job *j, const struct router_encoder *encoders, size_t count,
                                const struct progress *progress, struct err *e)
{
    struct worker *w = mem_array(count, sizeof(*w));
    enum err_code code = ERR_OK;
    size_t started = 1;
    for (size_t i = 0; i < count; i++)
        w[i] = (struct worker){.job = j, .encoder = &encoders[i]};
    w[0].progress = progress;
    for (size_t i = 1; i < count; i++, started++)
        if (thread_start(&w[i].thread, "encode", work, &w[i], &w[i].err) != ERR_OK)
            break; /* fewer threads, not less work */
    work(&w[0]);
    for (size_t i = 1; i < started; i++)
        thread_join(w[i].thread);
    for (size_t i = 0; i < started && code == ERR_OK; i++)
        if (w[i].code != ERR_OK) {
            code = w[i].code;
            if (e)
                *e = w[i].err;
        }
    free(w);
    return code;
}

enum err_code vectors_make(const struct router_encoder *encoders, size_t encoders_count,
                           const struct router_turn *texts, size_t count, const char *cache_path,
                           const struct progress *progress, float *ret, size_t *ret_encoded,
                           struct err *e)
{
    struct cache c = {0};
    size_t width = encoders[0].width;
    size_t *todo = mem_array(count + 1, sizeof(*todo));
    struct job j = {.texts = texts, .todo = todo, .width = width, .ret = ret};
    cache_open(&c, cache_path, &encoders[0]);
    for (size_t i = 0; i < count; i++) {
        const float *found = cache_find(&c, key_of(&texts[i]));
        if (found)
            memcpy(ret + i * width, found, width * sizeof(*ret));
        else
            todo[j.todo_count++] = i;
    }
    enum err_code code = encode_all(&j, encoders, encoders_count, progress, e);
    if (code == ERR_OK && cache_path && j.todo_count > 0)
        code = cache_write(&c, cache_path, &encoders[0], texts, count, ret, e);
    buf_done(&c.file);
    if (ret_encoded)
        *ret_encoded = j.todo_count;
    free(todo);
    return code;
}
