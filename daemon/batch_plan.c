/* From a file of requests to the order in which they run. */
#include "daemon/batch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/api_field.h"

#define CUSTOM_ID_BYTES_MAX 512

/* ---- one line
 * ---------------------------------------------------------------------------------------- */

static const struct {
    const char *url;
    enum api_kind kind;
} urls[] = {{"/v1/chat/completions", API_CHAT}, {"/v1/completions", API_COMPLETION}};

static enum err_code kind_of_url(const json_t *root, enum api_kind *ret, struct err *e)
{
    const char *url = NULL, *method = "POST";
    enum err_code code = field_text(root, "url", &url, e);
    if (code == ERR_OK)
        code = field_text(root, "method", &method, e);
    if (code != ERR_OK)
        return code;
    if (strcmp(method, "POST") != 0)
        return err_set_param(e, ERR_INVALID, "method", "'method' must be POST");
    if (url == NULL)
        return err_set_param(e, ERR_INVALID, "url", "'url' is missing");
    for (size_t i = 0; i < BASE_COUNT(urls); i++)
        if (strcmp(url, urls[i].url) == 0) {
            *ret = urls[i].kind;
            return ERR_OK;
        }
    return err_set_param(e, ERR_UNSUPPORTED, "url",
                         "'url' is '%.80s'; a batch does /v1/chat/completions and "
                         "/v1/completions",
                         url);
}

/* The body of a line: in an envelope with custom_id, method and url, or the line itself. */
static enum err_code open_envelope(const json_t *root, struct batch_line *l,
                                   const json_t **ret_body, struct err *e)
{
    const json_t *body = field_find(root, "body");
    const char *id = NULL;
    if (body == NULL && field_find(root, "custom_id") == NULL && field_find(root, "url") == NULL) {
        l->kind = field_find(root, "messages") != NULL ? API_CHAT : API_COMPLETION;
        *ret_body = root;
        return ERR_OK;
    }
    enum err_code code = field_text(root, "custom_id", &id, e);
    if (code != ERR_OK)
        return code;
    if (id == NULL || id[0] == 0)
        return err_set_param(e, ERR_INVALID, "custom_id",
                             "'custom_id' is missing: answers are matched by it");
    if (strlen(id) > CUSTOM_ID_BYTES_MAX)
        return err_set_param(e, ERR_INVALID, "custom_id", "'custom_id' is longer than %d bytes",
                             CUSTOM_ID_BYTES_MAX);
    free(l->custom_id);
    l->custom_id = mem_strdup(id);
    if (!json_is_object(body))
        return field_bad_type(e, "body", "an object", body);
    *ret_body = body;
    return kind_of_url(root, &l->kind, e);
}

static enum err_code open_call(struct server *s, struct batch_line *l, const char *text, size_t len,
                               struct api_call **ret, struct err *e)
{
    json_t *root = NULL;
    const json_t *body = NULL;
    enum err_code code = field_parse_body(text, len, &root, e);
    if (code != ERR_OK)
        return code;
    code = open_envelope(root, l, &body, e);
    if (code == ERR_OK) {
        char *dumped = json_dumps(body, JSON_COMPACT);
        code = api_call_open(s, l->kind, dumped, strlen(dumped), ret, e);
        free(dumped);
    }
    json_decref(root);
    if (code == ERR_OK && (*ret)->options.stream) {
        api_call_close(ret);
        code = err_set_param(e, ERR_INVALID, "stream",
                             "a batch has nobody to stream to: leave 'stream' out");
    }
    return code;
}

static void refuse(struct batch_line *l, const struct err *e)
{
    struct buf text = {0};
    api_put_error(&text, e);
    l->refusal = text.data;
    l->refusal_status = err_http_status(e->code);
}

static void validate(struct batch_plan *p, struct batch_line *l, const char *text,
                     struct router_scratch *scratch)
{
    struct api_call *call = NULL;
    struct err e = {0};
    l->custom_id = mem_format("line-%u", l->no);
    enum err_code code = open_call(p->server, l, text, l->len, &call, &e);
    if (code == ERR_OK)
        code = api_call_prepare(call, scratch, &e);
    if (code == ERR_OK) {
        l->expert = call->expert;
        l->reason = call->reason;
        l->confidence = call->confidence;
        p->route_ns += call->route_ns;
        for (size_t i = 0; i < call->requests_count; i++) {
            const struct request *r = call->requests[i];
            l->prompt_tokens += (uint32_t)r->prompt.count;
            l->tokens += (uint32_t)r->prompt.count + r->max_tokens * r->choices_count;
        }
    } else {
        refuse(l, &e);
    }
    api_call_close(&call);
}

enum err_code batch_line_call(struct batch_plan *p, const struct batch_line *l,
                              struct router_scratch *scratch, struct buf *text,
                              struct api_call **ret, struct err *e)
{
    struct batch_line again = {.no = l->no};
    buf_clear(text);
    char *bytes = mem_alloc(l->len + 1);
    ssize_t got = pread(p->fd, bytes, l->len, (off_t)l->offset);
    enum err_code code = ERR_OK;
    if (got != (ssize_t)l->len)
        code =
            err_set(e, ERR_IO, "%s changed while the batch ran: line %u is gone", p->input, l->no);
    if (code == ERR_OK)
        code = open_call(p->server, &again, bytes, l->len, ret, e);
    free(again.custom_id);
    free(bytes);
    if (code != ERR_OK)
        return code;
    /* The decision was made when all lines were read; nobody decides twice. */
    (*ret)->options.model = expert_info(l->expert)->name;
    code = api_call_prepare(*ret, scratch, e);
    (*ret)->reason = l->reason;
    (*ret)->confidence = l->confidence;
    if (code != ERR_OK)
        api_call_close(ret);
    return code;
}

/* ---- the file
 * ------------------------------------------------------------------------------------------ */

static struct batch_line *add_line(struct batch_plan *p, size_t *cap)
{
    if (p->lines_count == *cap) {
        *cap = *cap ? 2 * *cap : 1024;
        p->lines = mem_grow(p->lines, *cap, sizeof *p->lines);
    }
    struct batch_line *l = &p->lines[p->lines_count++];
    *l = (struct batch_line){0};
    return l;
}

static bool is_blank(const char *text, size_t len)
{
    return strspn(text, " \t\r\n") >= len;
}

static enum err_code read_lines(struct batch_plan *p, FILE *f, struct router_scratch *scratch,
                                const struct progress *progress, struct err *e)
{
    size_t cap = 0, room = 0, limit = (size_t)p->server->conf->server_max_body_bytes;
    char *text = NULL;
    uint64_t at = 0;
    enum err_code code = ERR_OK;
    for (uint32_t no = 1; code == ERR_OK; no++) {
        ssize_t got = getline(&text, &room, f);
        if (got < 0)
            break;
        size_t len = (size_t)got - (text[got - 1] == '\n');
        p->input_hash = hash128_of(text, (size_t)got, p->input_hash.lo);
        if (!is_blank(text, len)) {
            struct batch_line *l = add_line(p, &cap);
            l->offset = at;
            l->no = no;
            l->len = (uint32_t)BASE_MIN(len, limit);
            if (len > limit) {
                struct err too_long = {0};
                err_set(&too_long, ERR_TOO_LARGE,
                        "the line has %zu bytes, server.max_body_bytes allows %zu", len, limit);
                l->custom_id = mem_format("line-%u", no);
                refuse(l, &too_long);
            } else {
                validate(p, l, text, scratch);
            }
        }
        at += (uint64_t)got;
        if (!progress_report(progress, "reading the batch", at, p->input_bytes))
            code = err_set(e, ERR_CANCELLED, "cancelled");
    }
    if (code == ERR_OK && ferror(f))
        code = err_set_errno(e, ERR_IO, "cannot read %s", p->input);
    p->input_bytes = at;
    free(text);
    return code;
}

static const struct batch_line *sorted_lines;

static int by_id(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    int order = strcmp(sorted_lines[x].custom_id, sorted_lines[y].custom_id);
    return order ? order : (x > y) - (x < y);
}

/* Answers are matched by custom_id: the second of a pair could not be told from the first. */
static void refuse_duplicates(struct batch_plan *p)
{
    uint32_t *idx = mem_array(p->lines_count + 1, sizeof *idx);
    for (uint32_t i = 0; i < p->lines_count; i++)
        idx[i] = i;
    sorted_lines = p->lines;
    qsort(idx, p->lines_count, sizeof *idx, by_id);
    for (size_t i = 1, first = 0; i < p->lines_count; i++) {
        struct batch_line *l = &p->lines[idx[i]];
        struct err e = {0};
        if (strcmp(p->lines[idx[first]].custom_id, l->custom_id) != 0) {
            first = i;
        } else if (l->expert != NULL) {
            err_set_param(&e, ERR_INVALID, "custom_id", "'custom_id' stands on line %u already",
                          p->lines[idx[first]].no);
            refuse(l, &e);
            l->expert = NULL;
        }
    }
    free(idx);
}

enum err_code batch_plan_open(struct server *s, const char *input, const struct progress *progress,
                              struct batch_plan *ret, struct err *e)
{
    struct batch_plan p = {.server = s, .input = input, .fd = open(input, O_RDONLY | O_CLOEXEC)};
    struct stat st;
    uint64_t from = clock_ns();
    if (p.fd < 0 || fstat(p.fd, &st) != 0) {
        enum err_code code = err_set_errno(e, ERR_IO, "cannot read %s", input);
        batch_plan_close(&p);
        return code;
    }
    if (!S_ISREG(st.st_mode)) {
        batch_plan_close(&p);
        return err_set(e, ERR_INVALID, "%s is not a regular file: a plan reads its input twice",
                       input);
    }
    p.input_bytes = (uint64_t)st.st_size;
    FILE *f = fdopen(dup(p.fd), "r");
    struct router_scratch *scratch = s->head != NULL ? router_scratch_open(s->head) : NULL;
    enum err_code code = f != NULL ? read_lines(&p, f, scratch, progress, e)
                                   : err_set_errno(e, ERR_IO, "cannot read %s", input);
    if (f != NULL)
        fclose(f);
    router_scratch_close(&scratch);
    if (code != ERR_OK) {
        batch_plan_close(&p);
        return code;
    }
    refuse_duplicates(&p);
    for (size_t i = 0; i < p.lines_count; i++)
        p.bad_count += p.lines[i].expert == NULL;
    p.read_ns = clock_ns() - from;
    *ret = p;
    return ERR_OK;
}

void batch_plan_close(struct batch_plan *p)
{
    for (size_t i = 0; i < p->lines_count; i++) {
        free(p->lines[i].custom_id);
        free(p->lines[i].refusal);
    }
    free(p->lines);
    free(p->order);
    free(p->groups);
    if (p->fd >= 0)
        close(p->fd);
    *p = (struct batch_plan){.fd = -1};
}

/* ---- grouping and ordering
 * --------------------------------------------------------------------------- */

/* Runs of one expert in the order given. */
static void make_groups(struct batch_plan *p)
{
    size_t cap = 0;
    p->groups_count = 0;
    for (uint32_t i = 0; i < p->order_count; i++) {
        const struct batch_line *l = &p->lines[p->order[i]];
        struct batch_group *g = p->groups_count ? &p->groups[p->groups_count - 1] : NULL;
        if (g == NULL || g->expert != l->expert) {
            if (p->groups_count == cap) {
                cap = cap ? 2 * cap : 64;
                p->groups = mem_grow(p->groups, cap, sizeof *p->groups);
            }
            g = &p->groups[p->groups_count++];
            *g = (struct batch_group){.expert = l->expert, .first = i};
        }
        g->count++;
        g->tokens += l->tokens;
        g->tokens_max = BASE_MAX(g->tokens_max, l->tokens);
    }
}

/* What decides when an expert's turn comes; fewer is earlier. */
struct turn {
    uint64_t base_cost; /* bytes of its base that are missing: adapters of one base stay together */
    uint32_t base_idx;
    uint64_t cost; /* bytes of its own that are missing */
    uint32_t expert_idx;
};

static const struct turn *sorted_turns; /* [experts] */

static int by_turn(const void *a, const void *b)
{
    const struct batch_line *x = &sorted_lines[*(const uint32_t *)a],
                            *y = &sorted_lines[*(const uint32_t *)b];
    const struct turn *s = &sorted_turns[expert_index(x->expert)],
                      *t = &sorted_turns[expert_index(y->expert)];
    if (s->base_cost != t->base_cost)
        return s->base_cost < t->base_cost ? -1 : 1;
    if (s->base_idx != t->base_idx)
        return s->base_idx < t->base_idx ? -1 : 1;
    if (s->cost != t->cost)
        return s->cost < t->cost ? -1 : 1;
    if (s->expert_idx != t->expert_idx)
        return s->expert_idx < t->expert_idx ? -1 : 1;
    /* Longest first: short ones fill the batch at the end, where it would run empty. */
    if (x->tokens != y->tokens)
        return x->tokens > y->tokens ? -1 : 1;
    return (x > y) - (x < y);
}

static uint64_t missing_bytes(const struct server *s, struct expert *ex, size_t from, size_t to)
{
    size_t count;
    const uint32_t *segs = expert_segments(ex, &count);
    uint64_t bytes = 0;
    for (size_t i = from; i < BASE_MIN(to, count); i++)
        if (memtier_where(s->memtier, segs[i]) != MEMTIER_HBM)
            bytes += memtier_segment_bytes(s->memtier, segs[i]);
    return bytes;
}

static void order_by_turns(struct batch_plan *p)
{
    struct server *s = p->server;
    size_t count = experts_count(s->experts);
    struct turn *turns = mem_array(count, sizeof *turns);
    for (size_t i = 0; i < count; i++) {
        struct expert *ex = experts_at(s->experts, i);
        if (!expert_ok(ex, NULL))
            continue;
        size_t own = expert_adapter_segments(ex);
        turns[i] = (struct turn){.base_cost = missing_bytes(s, ex, own, SIZE_MAX),
                                 .base_idx = expert_base_index(ex),
                                 .cost = missing_bytes(s, ex, 0, own),
                                 .expert_idx = (uint32_t)i};
    }
    sorted_lines = p->lines;
    sorted_turns = turns;
    qsort(p->order, p->order_count, sizeof *p->order, by_turn);
    free(turns);
}

static void count_experts(struct batch_plan *p)
{
    bool *seen = mem_array(experts_count(p->server->experts) + 1, sizeof *seen);
    p->experts_used = 0;
    for (size_t i = 0; i < p->groups_count; i++) {
        bool *was = &seen[expert_index(p->groups[i].expert)];
        p->experts_used += !*was;
        *was = true;
    }
    free(seen);
}

void batch_plan_order(struct batch_plan *p, enum batch_order kind)
{
    uint64_t from = clock_ns();
    free(p->order);
    p->order = mem_array(p->lines_count + 1, sizeof *p->order);
    p->order_count = 0;
    for (uint32_t i = 0; i < p->lines_count; i++)
        if (p->lines[i].expert != NULL && !p->lines[i].finished)
            p->order[p->order_count++] = i;
    p->order_kind = kind;
    make_groups(p);
    batch_cost_of(p->server, p->groups, p->groups_count, &p->arrival);
    p->planned = p->arrival;
    if (kind == BATCH_ORDER_PLANNED) {
        order_by_turns(p);
        make_groups(p);
        batch_cost_of(p->server, p->groups, p->groups_count, &p->planned);
    }
    count_experts(p);
    p->order_ns = clock_ns() - from;
}
