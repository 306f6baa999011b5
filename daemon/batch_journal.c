/* The journal of a batch: finished lines in the order in which they finished, until the sink sorts
 * them. */
#include "daemon/batch.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/json_out.h"

#define SYNC_NS 1000000000ull /* what a power cut may take: the work of this long */
#define HEAD "switchyard-batch 1 "

/* ---- opening: what an earlier run left
 * ---------------------------------------------------------------- */

static void put_head(const struct batch_plan *p, char *text, size_t cap)
{
    char hex[33];
    hash128_format(p->input_hash, hex);
    snprintf(text, cap, HEAD "%s %" PRIu64 " bytes %zu lines\n", hex, p->input_bytes,
             p->lines_count);
}

/* "LINE ok|failed {json}"; false = no such line in the plan. */
static bool take_entry(struct batch_journal *j, struct batch_plan *p, const char *text, size_t len)
{
    uint32_t idx = 0;
    int head = 0;
    char state[8];
    if (sscanf(text, "%" SCNu32 " %7s %n", &idx, state, &head) != 2 || head == 0 ||
        (size_t)head >= len || idx >= p->lines_count)
        return false;
    struct batch_entry *entry = &j->entries[idx];
    p->finished_count += !entry->there;
    *entry = (struct batch_entry){.offset = j->end + (uint64_t)head,
                                  .len = (uint32_t)(len - (size_t)head - 1),
                                  .failed = strcmp(state, "ok") != 0,
                                  .there = true};
    p->lines[idx].finished = true;
    return true;
}

static enum err_code read_journal(struct batch_journal *j, struct batch_plan *p, struct err *e)
{
    char head[160], *text = NULL;
    size_t room = 0;
    enum err_code code = ERR_OK;
    put_head(p, head, sizeof head);
    ssize_t got = getline(&text, &room, j->file);
    if (got > 0 && text[got - 1] == '\n' && strcmp(text, head) != 0)
        code = err_set(e, ERR_EXISTS,
                       "%s holds the finished part of another input: give --restart to throw it "
                       "away, or another output file",
                       j->path);
    if (code == ERR_OK && got > 0 && text[got - 1] == '\n') {
        j->end = (uint64_t)got;
        while ((got = getline(&text, &room, j->file)) > 0 && text[got - 1] == '\n' &&
               take_entry(j, p, text, (size_t)got))
            j->end += (uint64_t)got;
    }
    free(text);
    return code;
}

enum err_code batch_journal_open(const char *output, struct batch_plan *p,
                                 struct batch_journal *ret, struct err *e)
{
    struct batch_journal j = {.path = mem_format("%s.partial", output)};
    char head[160];
    j.entries = mem_array(p->lines_count + 1, sizeof *j.entries);
    j.file = fopen(j.path, "a+e");
    enum err_code code =
        j.file != NULL ? ERR_OK : err_set_errno(e, ERR_IO, "cannot write %s", j.path);
    if (code == ERR_OK) {
        rewind(j.file);
        code = read_journal(&j, p, e);
    }
    if (code == ERR_OK && ftruncate(fileno(j.file), (off_t)j.end) != 0)
        code = err_set_errno(e, ERR_IO, "cannot cut the torn end off %s", j.path);
    if (code == ERR_OK && j.end == 0) {
        put_head(p, head, sizeof head);
        fseek(j.file, 0, SEEK_END);
        if (fputs(head, j.file) < 0 || fflush(j.file) != 0)
            code = err_set_errno(e, ERR_IO, "cannot write %s", j.path);
        j.end = strlen(head);
    }
    if (code != ERR_OK) {
        batch_journal_close(&j);
        return code;
    }
    fseek(j.file, 0, SEEK_END);
    *ret = j;
    return ERR_OK;
}

void batch_journal_close(struct batch_journal *j)
{
    if (j->file != NULL)
        fclose(j->file);
    free(j->path);
    free(j->entries);
    *j = (struct batch_journal){0};
}

enum err_code batch_journal_add(struct batch_journal *j, struct batch_plan *p, uint32_t line_idx,
                                bool failed, const struct buf *json, struct err *e)
{
    int head = fprintf(j->file, "%u %s ", line_idx, failed ? "failed" : "ok");
    bool good = head > 0 && fwrite(json->data, 1, json->len, j->file) == json->len &&
                fputc('\n', j->file) != EOF && fflush(j->file) == 0;
    uint64_t now = clock_ns();
    if (good && now - j->synced_ns > SYNC_NS) {
        good = fdatasync(fileno(j->file)) == 0;
        j->synced_ns = now;
    }
    if (!good)
        return err_set_errno(e, ERR_IO, "cannot write %s; what is finished is kept there", j->path);
    j->entries[line_idx] = (struct batch_entry){.offset = j->end + (uint64_t)head,
                                                .len = (uint32_t)json->len,
                                                .failed = failed,
                                                .there = true};
    j->end += (uint64_t)head + json->len + 1;
    p->lines[line_idx].finished = true;
    return ERR_OK;
}

/* ---- the sink
 * ------------------------------------------------------------------------------------------- */

struct sink {
    FILE *file;
    char *path; /* written beside, then renamed */
    const char *name;
    uint64_t lines;
};

static enum err_code sink_open(const char *name, struct sink *ret, struct err *e)
{
    *ret = (struct sink){.path = mem_format("%s.tmp.%ld", name, (long)getpid()), .name = name};
    ret->file = fopen(ret->path, "we");
    return ret->file != NULL ? ERR_OK : err_set_errno(e, ERR_IO, "cannot write %s", ret->path);
}

static enum err_code sink_put(struct sink *s, const char *text, size_t len, struct err *e)
{
    s->lines++;
    if (fwrite(text, 1, len, s->file) == len && fputc('\n', s->file) != EOF)
        return ERR_OK;
    return err_set_errno(e, ERR_IO, "cannot write %s", s->path);
}

/* `keep` with no line in it: the file is not made, and one of an earlier run goes away. */
static enum err_code sink_close(struct sink *s, bool keep, bool even_empty, struct err *e)
{
    enum err_code code = ERR_OK;
    bool good = s->file == NULL || (fflush(s->file) == 0 && fsync(fileno(s->file)) == 0);
    if (s->file != NULL)
        good &= fclose(s->file) == 0;
    if (keep && !good)
        code = err_set_errno(e, ERR_IO, "cannot write %s", s->path);
    bool wanted = keep && good && (s->lines > 0 || even_empty);
    if (wanted && rename(s->path, s->name) != 0)
        code = err_set_errno(e, ERR_IO, "cannot rename %s to %s", s->path, s->name);
    if (!wanted || code != ERR_OK)
        unlink(s->path);
    if (keep && good && !wanted)
        unlink(s->name);
    free(s->path);
    return code;
}

static void put_refusal(const struct batch_line *l, struct buf *out)
{
    buf_clear(out);
    buf_puts(out, "{\"custom_id\":");
    json_put_str(out, l->custom_id);
    buf_printf(out, ",\"line\":%u,\"response\":{\"status_code\":%d,\"body\":%s},\"error\":null}",
               l->no, l->refusal_status, l->refusal);
}

static enum err_code copy_entry(struct batch_journal *j, const struct batch_entry *entry,
                                struct buf *text, struct sink *to, struct err *e)
{
    text->data = mem_grow(text->data, BASE_MAX(text->cap, (size_t)entry->len + 1), 1);
    text->cap = BASE_MAX(text->cap, (size_t)entry->len + 1);
    if (pread(fileno(j->file), text->data, entry->len, (off_t)entry->offset) != (ssize_t)entry->len)
        return err_set_errno(e, ERR_IO, "cannot read %s", j->path);
    return sink_put(to, text->data, entry->len, e);
}

static enum err_code write_lines(struct batch_journal *j, const struct batch_plan *p,
                                 struct sink *answers, struct sink *errors, struct err *e)
{
    struct buf text = {0};
    enum err_code code = ERR_OK;
    for (size_t i = 0; i < p->lines_count && code == ERR_OK; i++) {
        const struct batch_entry *entry = &j->entries[i];
        if (p->lines[i].expert == NULL) {
            put_refusal(&p->lines[i], &text);
            code = sink_put(errors, text.data, text.len, e);
        } else if (entry->there) {
            code = copy_entry(j, entry, &text, entry->failed ? errors : answers, e);
        }
    }
    buf_done(&text);
    return code;
}

enum err_code batch_journal_finish(struct batch_journal *j, const struct batch_plan *p,
                                   const char *output, const char *errors, struct err *e)
{
    struct sink good, bad = {0};
    enum err_code code = sink_open(output, &good, e);
    if (code == ERR_OK)
        code = sink_open(errors, &bad, e);
    if (code == ERR_OK)
        code = write_lines(j, p, &good, &bad, e);
    struct err later = {0};
    enum err_code first = sink_close(&good, code == ERR_OK, true, &later);
    enum err_code second =
        bad.path != NULL ? sink_close(&bad, code == ERR_OK, false, &later) : ERR_OK;
    if (code == ERR_OK && (first != ERR_OK || second != ERR_OK)) {
        *e = later;
        return later.code;
    }
    if (code == ERR_OK)
        unlink(j->path);
    return code;
}
