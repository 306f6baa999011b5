/* experts add: a GGUF file becomes an expert in the store. Everything that could make the expert
 * unable to serve is found out before the first byte is written: header, hyperparameters, tensor
 * shapes, tokenizer, template, names. Then the weight set is committed, then the small record that
 * makes it an expert: killed in between, the store is as before but for a set nobody uses, which
 * the next add of the same file takes up and the next removal sweeps away. */
#include "experts/gguf.h"
#include "experts/set.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NAME_BYTES_MAX 96
#define TEXT_BYTES_MAX ((size_t)1 << 20) /* description, system prompt, template */
#define ALIASES_MAX 64
#define SCALE_MAX 1000.0
#define HASH_PIECE ((size_t)4 << 20)
/* Part of the set's name: another layout of the same file is another set. */
#define LAYOUT_SEED 1

struct importing {
    struct memtier_store *store;
    const struct expert_add_options *opt;
    const struct progress *progress;
    struct err *e;
    struct set_meta *plan;
    struct expert_record *record;
    struct expert_add_report report;
};

/* ---- names and texts ---- */

/* Names go into URLs, JSON, configuration files and object names: no spaces, no surprises. */
static bool name_ok(const char *s)
{
    size_t n = strlen(s);
    if (n == 0 || n > NAME_BYTES_MAX || s[0] == '.' || s[0] == '/')
        return false;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        bool ok = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  strchr("._-:/@+", c);
        if (!ok)
            return false;
    }
    return strcmp(s, "auto") != 0;
}

static enum err_code check_name(const char *s, const char *param, struct err *e)
{
    if (name_ok(s))
        return ERR_OK;
    return err_set_param(
        e, ERR_INVALID, param,
        "'%.100s' cannot be a name: 1 to %d letters, digits and ._-:/@+ are allowed, "
        "not starting with . or /, and 'auto' is the router's",
        s, NAME_BYTES_MAX);
}

static enum err_code check_text(const char *s, const char *param, struct err *e)
{
    if (!s)
        return ERR_OK;
    size_t n = strlen(s);
    if (n > TEXT_BYTES_MAX)
        return err_set_param(e, ERR_TOO_LARGE, param, "%s is longer than %zu bytes", param,
                             TEXT_BYTES_MAX);
    if (!utf8_valid(s, n))
        return err_set_param(e, ERR_INVALID, param, "%s is not UTF-8", param);
    return ERR_OK;
}

static enum err_code check_options(const struct expert_add_options *o, struct err *e)
{
    if (!o->path || !o->name)
        return err_set(e, ERR_INVALID, "an expert needs a file and a name");
    enum err_code rc = check_name(o->name, "name", e);
    if (rc == ERR_OK && o->aliases_count > ALIASES_MAX)
        rc = err_set_param(e, ERR_INVALID, "aliases", "more than %d aliases", ALIASES_MAX);
    for (size_t i = 0; i < o->aliases_count && rc == ERR_OK; i++) {
        rc = check_name(o->aliases[i], "aliases", e);
        if (rc == ERR_OK && strcmp(o->aliases[i], o->name) == 0)
            rc = err_set_param(e, ERR_INVALID, "aliases", "'%s' is an alias of itself", o->name);
        for (size_t k = 0; k < i && rc == ERR_OK; k++)
            if (strcmp(o->aliases[i], o->aliases[k]) == 0)
                rc = err_set_param(e, ERR_INVALID, "aliases", "alias '%s' is given twice",
                                   o->aliases[i]);
    }
    if (rc == ERR_OK && (!isfinite(o->scale) || fabs(o->scale) > SCALE_MAX))
        rc = err_set_param(e, ERR_INVALID, "scale", "scale %g is not within +-%g", o->scale,
                           SCALE_MAX);
    if (rc == ERR_OK && !o->base && o->scale != 0 && o->scale != 1)
        rc = err_set_param(e, ERR_INVALID, "scale",
                           "a full model has no scale; name the base if '%s' "
                           "is an adapter",
                           o->name);
    if (rc == ERR_OK)
        rc = check_text(o->description, "description", e);
    if (rc == ERR_OK)
        rc = check_text(o->system, "system", e);
    if (rc == ERR_OK)
        rc = check_text(o->template_source, "template", e);
    return rc == ERR_OK ? check_text(o->licence, "licence", e) : rc;
}

/* ---- what the file is ---- */

static enum err_code check_template(const char *text, size_t len, const char *whose, struct err *e)
{
    struct chat_template *t = NULL;
    enum err_code rc = template_parse(text, len, &t, e);
    template_close(&t);
    return rc == ERR_OK ? ERR_OK : err_wrap(e, "%s chat template", whose);
}

static enum err_code check_texts_of_model(const struct importing *im, const struct gguf *g)
{
    struct tokenizer *t = NULL;
    enum err_code rc = tokenizer_open(g, &t, im->e);
    tokenizer_close(&t);
    if (rc != ERR_OK)
        return err_wrap(im->e, "%s: tokenizer", g->label);
    if (im->opt->template_source || !gguf_has(g, "tokenizer.chat_template"))
        return ERR_OK;
    struct gguf_str s;
    rc = gguf_get_str(g, "tokenizer.chat_template", &s, im->e);
    if (rc != ERR_OK)
        return rc;
    rc = check_template(s.data, s.len, "the file's", im->e);
    return rc == ERR_OK ? ERR_OK
                        : err_wrap(im->e, "%s (give another one with --template)", g->label);
}

static enum err_code plan_full_model(struct importing *im, struct gguf **g)
{
    struct model_shape shape;
    enum err_code rc = model_parse(*g, &shape, im->e);
    if (rc == ERR_OK)
        rc = check_texts_of_model(im, *g);
    return rc == ERR_OK ? set_plan_model(g, &shape, &im->plan, im->e) : rc;
}

/* Adapters may be stacked, each over the one before: count those below the new one. */
static enum err_code check_depth(struct importing *im, const struct expert_record *base)
{
    char *at = mem_strdup(base->name);
    enum err_code rc = ERR_OK;
    for (unsigned depth = 1; rc == ERR_OK; depth++) {
        struct expert_record *r = NULL;
        rc = expert_record_find(im->store, at, &r, im->e);
        bool more = rc == ERR_OK && r->base;
        if (more && depth == SET_ADAPTERS_MAX)
            rc = err_set_param(im->e, ERR_UNSUPPORTED, "base",
                               "'%s' would be adapter %u over a model; "
                               "%d may be stacked",
                               im->opt->name, depth + 1, SET_ADAPTERS_MAX);
        free(at);
        at = mem_strdup(more ? r->base : "");
        expert_record_close(&r);
        if (!more)
            break;
    }
    free(at);
    return rc;
}

static enum err_code plan_over_base(struct importing *im, struct gguf **g)
{
    struct expert_record *base = NULL;
    struct set_meta *set = NULL;
    enum err_code rc = expert_record_find(im->store, im->opt->base, &base, im->e);
    if (rc != ERR_OK)
        return err_wrap(im->e, "base of '%s'", im->opt->name);
    /* The base may be an adapter too: they are applied from the bottom up. */
    rc = check_depth(im, base);
    const struct memtier_object *o = memtier_store_find(im->store, base->set);
    if (rc == ERR_OK && !o)
        rc = err_set(im->e, ERR_CORRUPT, "the store lacks %s, the weights of '%s'", base->set,
                     base->name);
    if (rc == ERR_OK)
        rc = set_parse(o, &set, im->e);
    if (rc == ERR_OK)
        rc = set_plan_adapter(g, &set->shape, &im->plan, im->e);
    if (rc == ERR_OK) {
        im->record->base = mem_strdup(base->name);
        im->record->set = mem_strdup(base->set);
    }
    set_close(&set);
    expert_record_close(&base);
    return rc;
}

/* ---- content hash ---- */

/* Norms, biases and adapter factors must be finite: one NaN there makes every answer NaN. (Matrices
 * of blocks are not looked into: it would cost more than it tells.) */
static enum err_code check_finite(const struct importing *im, const struct gguf_tensor *t,
                                  const uint8_t *raw)
{
    const struct rdu_type_info *ti = rdu_type_info(t->type);
    size_t cols = (size_t)t->dim[0], row_bytes = cols / ti->block_elems * ti->block_bytes;
    float *row = mem_array(cols, sizeof(*row));
    bool finite = true;
    for (uint64_t r = 0; finite && r < t->bytes / row_bytes; r++) {
        rdu_dequant_row(t->type, raw + r * row_bytes, row, cols);
        for (size_t c = 0; c < cols; c++)
            finite = finite && isfinite(row[c]);
    }
    free(row);
    return finite ? ERR_OK
                  : err_set(im->e, ERR_CORRUPT, "%s: tensor '%s' holds numbers that are not finite",
                            im->plan->gguf->label, t->name);
}

struct hashing {
    uint8_t *piece;
    struct hash128 *list; /* of the header and every piece, in file order */
    size_t count, cap;
    uint64_t done, total;
};

static void note_hash(struct hashing *h, const void *data, size_t len)
{
    if (h->count == h->cap) {
        h->cap = h->cap ? h->cap * 2 : 256;
        h->list = mem_grow(h->list, h->cap, sizeof(*h->list));
    }
    h->list[h->count++] = hash128_of(data, len, LAYOUT_SEED);
}

static enum err_code hash_tensor(struct importing *im, struct hashing *h,
                                 const struct gguf_tensor *t)
{
    bool looked_into =
        t->bytes <= HASH_PIECE && (im->plan->is_adapter || set_find(im->plan, t->name)->is_vector);
    char *what = mem_format("reading %s", im->plan->gguf->label);
    enum err_code rc = ERR_OK;
    for (uint64_t at = 0; at < t->bytes && rc == ERR_OK; at += HASH_PIECE) {
        size_t n = (size_t)BASE_MIN((uint64_t)HASH_PIECE, t->bytes - at);
        rc = gguf_read_range(im->plan->gguf, t, at, n, h->piece, im->e);
        if (rc != ERR_OK)
            break;
        note_hash(h, h->piece, n);
        h->done += n;
        if (looked_into)
            rc = check_finite(im, t, h->piece);
        if (rc == ERR_OK && !progress_report(im->progress, what, h->done, h->total))
            rc = err_set(im->e, ERR_CANCELLED, "import cancelled; the store is as before");
    }
    free(what);
    return rc;
}

/* "set/<hash of header and tensor bytes>", the name of the set this file is. */
static enum err_code name_set(struct importing *im, char **ret)
{
    const struct gguf *g = im->plan->gguf;
    struct hashing h = {0};
    size_t header_len;
    const void *header = gguf_header(g, &header_len);
    h.piece = mem_alloc(HASH_PIECE);
    for (size_t i = 0; i < gguf_tensors(g); i++)
        h.total += gguf_tensor_at(g, i)->bytes;
    note_hash(&h, header, header_len);
    enum err_code rc = ERR_OK;
    for (size_t i = 0; i < gguf_tensors(g) && rc == ERR_OK; i++)
        rc = hash_tensor(im, &h, gguf_tensor_at(g, i));
    if (rc == ERR_OK) {
        char hex[33];
        hash128_format(hash128_of(h.list, h.count * sizeof(*h.list), LAYOUT_SEED), hex);
        *ret = mem_format(SET_PREFIX "%s", hex);
        im->report.bytes_read = h.total + header_len;
    }
    free(h.piece);
    free(h.list);
    return rc;
}

/* ---- the record ---- */

static char *own_or_file(const char *given, const struct gguf *g, const char *key)
{
    struct gguf_str s;
    if (given)
        return mem_strdup(given);
    if (gguf_get_str(g, key, &s, NULL) != ERR_OK || s.len == 0 || s.len > TEXT_BYTES_MAX ||
        !utf8_valid(s.data, s.len) || memchr(s.data, 0, s.len))
        return NULL;
    return mem_strndup(s.data, s.len);
}

static void fill_record(struct importing *im, char *set_name)
{
    struct expert_record *r = im->record;
    const struct expert_add_options *o = im->opt;
    r->name = mem_strdup(o->name);
    *(o->base ? &r->adapter_set : &r->set) = set_name;
    r->scale = o->scale != 0 ? o->scale : 1.0;
    r->description = own_or_file(o->description, im->plan->gguf, "general.description");
    r->licence = own_or_file(o->licence, im->plan->gguf, "general.license");
    r->system = o->system ? mem_strdup(o->system) : NULL;
    r->template_source = o->template_source ? mem_strdup(o->template_source) : NULL;
    r->aliases = mem_array(o->aliases_count + 1, sizeof(*r->aliases));
    for (size_t i = 0; i < o->aliases_count; i++)
        r->aliases[r->aliases_count++] = mem_strdup(o->aliases[i]);
    r->created_s = clock_wall_ms() / 1000;
}

/* Does `name` already mean an expert other than ours? */
static bool name_taken(struct importing *im, const char *name, struct expert_record **ret_holder)
{
    return expert_record_find(im->store, name, ret_holder, NULL) == ERR_OK &&
           strcmp((*ret_holder)->name, im->record->name) != 0;
}

static enum err_code check_names_free(struct importing *im)
{
    const struct expert_record *r = im->record;
    for (size_t i = 0; i <= r->aliases_count; i++) {
        const char *name = i == 0 ? r->name : r->aliases[i - 1];
        struct expert_record *holder = NULL;
        enum err_code rc = ERR_OK;
        if (name_taken(im, name, &holder))
            rc = err_set_param(im->e, ERR_EXISTS, i ? "aliases" : "name",
                               "'%s' already means expert '%s'", name, holder->name);
        expert_record_close(&holder);
        if (rc != ERR_OK)
            return rc;
    }
    return ERR_OK;
}

/* *ret_same: the store has exactly this expert. Another of that name is not replaced: a running
 * server may hold it, and a typing error should not cost a model. */
static enum err_code check_existing(struct importing *im, bool *ret_same)
{
    struct expert_record *old = NULL;
    char *object = mem_format(EXPERT_PREFIX "%s", im->record->name);
    const struct memtier_object *o = memtier_store_find(im->store, object);
    free(object);
    *ret_same = false;
    if (!o)
        return check_names_free(im);
    enum err_code rc = expert_record_parse(o, &old, im->e);
    if (rc != ERR_OK)
        return rc;
    *ret_same = expert_record_equal(old, im->record);
    expert_record_close(&old);
    if (!*ret_same)
        return err_set_param(
            im->e, ERR_EXISTS, "name",
            "expert '%s' exists with other content; remove it first (experts rm %s)",
            im->record->name, im->record->name);
    return ERR_OK;
}

static void count_shared(struct importing *im)
{
    im->report.segments = im->report.segments_shared = im->plan->segments;
    im->report.bytes_shared = set_bytes(im->plan);
}

static enum err_code store_record(struct importing *im)
{
    struct buf text = {0};
    struct memtier_writer *w = NULL;
    char *object = mem_format(EXPERT_PREFIX "%s", im->record->name);
    enum err_code rc = expert_record_format(im->record, &text, im->e);
    if (rc == ERR_OK)
        rc = memtier_writer_open(im->store, object, 0, &w, im->e);
    if (rc == ERR_OK)
        rc = memtier_writer_commit(&w, text.data, text.len, im->e);
    memtier_writer_abort(&w);
    buf_done(&text);
    free(object);
    return rc;
}

static enum err_code store_planned(struct importing *im)
{
    const char *set = im->opt->base ? im->record->adapter_set : im->record->set;
    bool same = false, have = memtier_store_find(im->store, set) != NULL;
    enum err_code rc = check_existing(im, &same);
    if (rc != ERR_OK)
        return rc;
    if (have)
        count_shared(im);
    else
        rc = set_write(im->store, im->plan, set, im->progress, &im->report, im->e);
    if (rc == ERR_OK && !same)
        rc = store_record(im);
    return rc;
}

static enum err_code import(struct importing *im)
{
    struct gguf *g = NULL;
    char *set_name = NULL;
    enum err_code rc = gguf_open(im->opt->path, &g, im->e);
    if (rc == ERR_OK)
        rc = im->opt->base ? plan_over_base(im, &g) : plan_full_model(im, &g);
    gguf_close(&g);
    if (rc == ERR_OK && im->opt->template_source)
        rc = check_template(im->opt->template_source, strlen(im->opt->template_source), "the given",
                            im->e);
    if (rc == ERR_OK)
        rc = name_set(im, &set_name);
    if (rc != ERR_OK)
        return rc;
    fill_record(im, set_name);
    return store_planned(im);
}

enum err_code experts_add(struct memtier_store *store, const struct expert_add_options *opt,
                          const struct progress *progress, struct expert_add_report *ret,
                          struct err *e)
{
    struct err local;
    struct importing im = {.store = store, .opt = opt, .progress = progress, .e = e ? e : &local};
    enum err_code rc = check_options(opt, im.e);
    if (rc != ERR_OK)
        return rc;
    im.record = mem_alloc(sizeof(*im.record));
    rc = import(&im);
    if (rc == ERR_OK && ret)
        *ret = im.report;
    set_close(&im.plan);
    expert_record_close(&im.record);
    return rc;
}
