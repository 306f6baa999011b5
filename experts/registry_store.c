/* What the store knows of its experts: listing and removal. Nothing here opens an expert for
 * serving. */
#include "experts/gguf.h"
#include "experts/set.h"

#include <stdlib.h>
#include <string.h>

static bool is_expert(const struct memtier_object *o)
{
    return strncmp(o->name, EXPERT_PREFIX, strlen(EXPERT_PREFIX)) == 0;
}

/* ---- facts for lists ---- */

/* Element types by the bytes they take, the largest share first: "Q4_1, Q8_0, F32". */
static char *types_text(const struct set_meta *s)
{
    uint64_t bytes[RDU_TYPES] = {0};
    struct buf text = {0};
    for (size_t i = 0; i < s->tensors_count; i++)
        bytes[s->tensors[i].file_type] += s->tensors[i].bytes;
    for (;;) {
        unsigned best = 0;
        for (unsigned t = 1; t < RDU_TYPES; t++)
            if (bytes[t] > bytes[best])
                best = t;
        if (bytes[best] == 0)
            break;
        buf_printf(&text, "%s%s", text.len ? ", " : "", rdu_type_info((enum rdu_type)best)->name);
        bytes[best] = 0;
    }
    char *ret = mem_strdup(text.len ? text.data : "");
    buf_done(&text);
    return ret;
}

static uint64_t parameter_count(const struct set_meta *s)
{
    uint64_t n = 0;
    for (size_t i = 0; i < s->tensors_count; i++)
        n += (uint64_t)s->tensors[i].rows * s->tensors[i].cols;
    return n;
}

static char *dup_or_null(const char *s)
{
    return s ? mem_strdup(s) : NULL;
}

void expert_info_fill(struct expert_info *info, const struct expert_record *r,
                      const struct set_meta *set, const struct set_meta *adapter)
{
    const struct set_meta *own = r->adapter_set ? adapter : set;
    info->name = mem_strdup(r->name);
    info->base = dup_or_null(r->base);
    info->description = dup_or_null(r->description);
    info->system = dup_or_null(r->system);
    info->licence = dup_or_null(r->licence);
    info->aliases = mem_array(r->aliases_count + 1, sizeof(*info->aliases));
    for (size_t i = 0; i < r->aliases_count; i++)
        info->aliases[info->aliases_count++] = mem_strdup(r->aliases[i]);
    info->scale = r->scale;
    info->created_s = r->created_s;
    info->is_adapter = r->adapter_set != NULL;
    info->architecture = mem_strdup(set ? model_arch_name(set->shape.arch) : "unreadable");
    info->types = own ? types_text(own) : mem_strdup("unreadable");
    info->bytes = own ? set_bytes(own) : 0;
    info->parameters = own ? parameter_count(own) : 0;
    info->context = set ? set->shape.context : 0;
    info->layers = set ? set->shape.layers : 0;
}

void expert_info_done(struct expert_info *info)
{
    char *const owned[] = {info->name,         info->base,  info->description, info->system,
                           info->architecture, info->types, info->licence};
    for (size_t i = 0; i < BASE_COUNT(owned); i++)
        free(owned[i]);
    for (size_t i = 0; i < info->aliases_count; i++)
        free(info->aliases[i]);
    free(info->aliases);
    memset(info, 0, sizeof(*info));
}

/* ---- listing ---- */

/* Sets that were read already: a zoo of adapters reads its base's header once. */
struct set_cache {
    struct {
        char *name;
        struct set_meta *set; /* NULL = could not be read */
    } * entry;
    size_t count;
};

static const struct set_meta *cached_set(struct set_cache *c, struct memtier_store *store,
                                         const char *name)
{
    if (!name)
        return NULL;
    for (size_t i = 0; i < c->count; i++)
        if (strcmp(c->entry[i].name, name) == 0)
            return c->entry[i].set;
    struct set_meta *set = NULL;
    const struct memtier_object *o = memtier_store_find(store, name);
    if (o && set_parse(o, &set, NULL) != ERR_OK)
        set = NULL;
    c->entry = mem_grow(c->entry, c->count + 1, sizeof(*c->entry));
    c->entry[c->count].name = mem_strdup(name);
    c->entry[c->count++].set = set;
    return set;
}

static void cache_done(struct set_cache *c)
{
    for (size_t i = 0; i < c->count; i++) {
        free(c->entry[i].name);
        set_close(&c->entry[i].set);
    }
    free(c->entry);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct expert_info *)a)->name, ((const struct expert_info *)b)->name);
}

/* A record that cannot be read is listed by its name alone: the list must show what to remove. */
static void list_broken(struct expert_info *info, const struct memtier_object *o)
{
    struct expert_record r = {.name = (char *)o->name + strlen(EXPERT_PREFIX), .scale = 1};
    expert_info_fill(info, &r, NULL, NULL);
}

enum err_code experts_list(struct memtier_store *store, struct expert_info **ret, size_t *ret_count,
                           struct err *e)
{
    struct set_cache cache = {0};
    size_t objects = memtier_store_objects(store), count = 0;
    struct expert_info *list = mem_array(objects + 1, sizeof(*list));
    for (size_t i = 0; i < objects; i++) {
        const struct memtier_object *o = memtier_store_object_at(store, i);
        struct expert_record *r = NULL;
        if (!is_expert(o))
            continue;
        if (expert_record_parse(o, &r, NULL) != ERR_OK) {
            list_broken(&list[count++], o);
            continue;
        }
        expert_info_fill(&list[count++], r, cached_set(&cache, store, r->set),
                         cached_set(&cache, store, r->adapter_set));
        expert_record_close(&r);
    }
    cache_done(&cache);
    qsort(list, count, sizeof(*list), by_name);
    *ret = list;
    *ret_count = count;
    return ERR_OK;
}

void experts_list_done(struct expert_info *list, size_t count)
{
    for (size_t i = 0; list && i < count; i++)
        expert_info_done(&list[i]);
    free(list);
}

/* ---- footprints ---- */

struct hash_set {
    struct hash128 *v;
    size_t count, cap;
    uint64_t bytes;
};

static void add_object(struct hash_set *h, const struct memtier_object *o)
{
    for (size_t i = 0; o && i < o->segments_count; i++) {
        size_t k = 0;
        while (k < h->count && !hash128_equal(h->v[k], o->segments[i].hash))
            k++;
        if (k < h->count)
            continue;
        if (h->count == h->cap) {
            h->cap = h->cap * 2 + 64;
            h->v = mem_grow(h->v, h->cap, sizeof(*h->v));
        }
        h->v[h->count++] = o->segments[i].hash;
        h->bytes += memtier_footprint(o->segments[i].bytes);
    }
}

/* An adapter needs what its base needs; a base may be an adapter itself. */
static enum err_code add_expert(struct memtier_store *store, const char *name, struct hash_set *h,
                                int depth, struct err *e)
{
    struct expert_record *r = NULL;
    char *object = mem_format(EXPERT_PREFIX "%s", name);
    const struct memtier_object *o = memtier_store_find(store, object);
    enum err_code rc = o == NULL ? err_set(e, ERR_NOT_FOUND, "the store has no expert '%.100s'", name)
                                 : expert_record_parse(o, &r, e);
    free(object);
    if (rc != ERR_OK)
        return rc;
    add_object(h, memtier_store_find(store, r->set));
    if (r->adapter_set)
        add_object(h, memtier_store_find(store, r->adapter_set));
    if (r->base && depth < 8)
        rc = add_expert(store, r->base, h, depth + 1, e);
    expert_record_close(&r);
    return rc;
}

enum err_code experts_footprint(struct memtier_store *store, const char *const *names, size_t count,
                                uint64_t *ret_bytes, struct err *e)
{
    struct hash_set h = {0};
    enum err_code rc = ERR_OK;
    for (size_t i = 0; i < count && rc == ERR_OK; i++)
        rc = add_expert(store, names[i], &h, 0, e);
    *ret_bytes = h.bytes;
    free(h.v);
    return rc;
}

/* ---- removing ---- */

/* Calls `fn` with every readable record but stops when it returns true. */
static bool any_record(struct memtier_store *store,
                       bool (*fn)(const struct expert_record *, const char *), const char *arg)
{
    bool hit = false;
    for (size_t i = 0; i < memtier_store_objects(store) && !hit; i++) {
        const struct memtier_object *o = memtier_store_object_at(store, i);
        struct expert_record *r = NULL;
        if (!is_expert(o) || expert_record_parse(o, &r, NULL) != ERR_OK)
            continue;
        hit = fn(r, arg);
        expert_record_close(&r);
    }
    return hit;
}

static bool uses_set(const struct expert_record *r, const char *set)
{
    return strcmp(r->set, set) == 0 || (r->adapter_set && strcmp(r->adapter_set, set) == 0);
}

/* Sets that no expert names: what the removed expert alone used, and what an import that was killed
 * between set and record left behind. A damaged record may name sets we cannot see: then keep all.
 */
static enum err_code sweep_sets(struct memtier_store *store, struct err *e)
{
    for (size_t i = 0; i < memtier_store_objects(store); i++) {
        struct expert_record *r = NULL;
        const struct memtier_object *o = memtier_store_object_at(store, i);
        if (is_expert(o) && expert_record_parse(o, &r, NULL) != ERR_OK)
            return ERR_OK;
        expert_record_close(&r);
    }
    size_t i = 0;
    while (i < memtier_store_objects(store)) {
        const char *name = memtier_store_object_at(store, i)->name;
        if (strncmp(name, SET_PREFIX, strlen(SET_PREFIX)) != 0 ||
            any_record(store, uses_set, name)) {
            i++;
            continue;
        }
        char *own = mem_strdup(name); /* the view ends with the removal */
        enum err_code rc = memtier_store_remove(store, own, e);
        free(own);
        if (rc != ERR_OK)
            return rc;
        i = 0;
    }
    return ERR_OK;
}

static bool sits_on(const struct expert_record *r, const char *base)
{
    return r->base && strcmp(r->base, base) == 0;
}

static enum err_code refuse_base(struct memtier_store *store, const char *name, struct err *e)
{
    struct buf list = {0};
    size_t n = 0;
    for (size_t i = 0; i < memtier_store_objects(store); i++) {
        struct expert_record *r = NULL;
        const struct memtier_object *o = memtier_store_object_at(store, i);
        if (!is_expert(o) || expert_record_parse(o, &r, NULL) != ERR_OK)
            continue;
        if (sits_on(r, name) && ++n <= 5)
            buf_printf(&list, "%s%s", list.len ? ", " : "", r->name);
        expert_record_close(&r);
    }
    enum err_code rc = err_set(e, ERR_BUSY,
                               "expert '%.100s' is the base of %zu others (%s%s); remove "
                               "those first",
                               name, n, list.data, n > 5 ? ", ..." : "");
    buf_done(&list);
    return rc;
}

enum err_code experts_remove(struct memtier_store *store, const char *name, struct err *e)
{
    char *object = mem_format(EXPERT_PREFIX "%s", name);
    enum err_code rc = ERR_OK;
    if (!memtier_store_find(store, object)) {
        struct expert_record *r = NULL;
        rc = expert_record_find(store, name, &r, e);
        if (rc == ERR_OK)
            rc = err_set(e, ERR_NOT_FOUND, "'%.100s' is an alias of expert '%s'; name that", name,
                         r->name);
        expert_record_close(&r);
    } else if (any_record(store, sits_on, name)) {
        rc = refuse_base(store, name, e);
    } else {
        rc = memtier_store_remove(store, object, e);
    }
    free(object);
    return rc == ERR_OK ? sweep_sets(store, e) : rc;
}
