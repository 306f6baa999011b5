/* The record of one expert in the store: object "expert/<name>", a JSON text without segments of
 * its own. Weights are named by set, so two experts over one base cost the base once. */
#include "experts/set.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define RECORD_VERSION 1

void expert_record_close(struct expert_record **rp)
{
    struct expert_record *r = *rp;
    if (!r)
        return;
    char *const owned[] = {
        r->name,   r->set, r->base, r->adapter_set, r->description, r->system, r->template_source,
        r->licence};
    for (size_t i = 0; i < BASE_COUNT(owned); i++)
        free(owned[i]);
    for (size_t i = 0; i < r->aliases_count; i++)
        free(r->aliases[i]);
    free(r->aliases);
    free(r);
    *rp = NULL;
}

static void put_string(json_t *j, const char *key, const char *value)
{
    if (value)
        json_object_set_new(j, key, json_string(value));
}

enum err_code expert_record_format(const struct expert_record *r, struct buf *ret, struct err *e)
{
    json_t *j = json_object(), *aliases = json_array();
    json_object_set_new(j, "version", json_integer(RECORD_VERSION));
    put_string(j, "name", r->name);
    put_string(j, "set", r->set);
    put_string(j, "base", r->base);
    put_string(j, "adapter_set", r->adapter_set);
    json_object_set_new(j, "scale", json_real(r->scale));
    put_string(j, "description", r->description);
    put_string(j, "system", r->system);
    put_string(j, "template", r->template_source);
    put_string(j, "licence", r->licence);
    for (size_t i = 0; i < r->aliases_count; i++)
        json_array_append_new(aliases, json_string(r->aliases[i]));
    json_object_set_new(j, "aliases", aliases);
    json_object_set_new(j, "created", json_integer((json_int_t)r->created_s));
    char *text = json_dumps(j, JSON_COMPACT);
    json_decref(j);
    if (!text)
        return err_set(e, ERR_INTERNAL, "expert '%s': its record cannot be written as JSON",
                       r->name);
    buf_puts(ret, text);
    free(text);
    return ERR_OK;
}

/* ---- reading ---- */

static enum err_code bad(const struct memtier_object *o, const char *what, struct err *e)
{
    return err_set(e, ERR_CORRUPT, "store object %s: %s; remove the expert and add it again",
                   o->name, what);
}

static char *take_string(const json_t *j, const char *key)
{
    const char *s = json_string_value(json_object_get(j, key));
    return s ? mem_strdup(s) : NULL;
}

static bool take_aliases(const json_t *j, struct expert_record *r)
{
    const json_t *list = json_object_get(j, "aliases");
    size_t n = json_array_size(list);
    r->aliases = mem_array(n + 1, sizeof(*r->aliases));
    for (size_t i = 0; i < n; i++) {
        const char *s = json_string_value(json_array_get(list, i));
        if (!s)
            return false;
        r->aliases[r->aliases_count++] = mem_strdup(s);
    }
    return true;
}

static enum err_code take_fields(const struct memtier_object *o, const json_t *j,
                                 struct expert_record *r, struct err *e)
{
    const json_t *scale = json_object_get(j, "scale"), *created = json_object_get(j, "created");
    if (json_integer_value(json_object_get(j, "version")) != RECORD_VERSION)
        return bad(o, "written by another version of switchyard", e);
    r->name = take_string(j, "name");
    r->set = take_string(j, "set");
    r->base = take_string(j, "base");
    r->adapter_set = take_string(j, "adapter_set");
    r->description = take_string(j, "description");
    r->system = take_string(j, "system");
    r->template_source = take_string(j, "template");
    r->licence = take_string(j, "licence");
    r->scale = json_number_value(scale);
    r->created_s = json_integer_value(created) > 0 ? (uint64_t)json_integer_value(created) : 0;
    if (!r->name || strcmp(r->name, o->name + strlen(EXPERT_PREFIX)) != 0)
        return bad(o, "the name inside differs", e);
    if (!r->set || strncmp(r->set, SET_PREFIX, strlen(SET_PREFIX)) != 0)
        return bad(o, "no weight set is named", e);
    if ((r->base != NULL) != (r->adapter_set != NULL))
        return bad(o, "base and adapter do not go together", e);
    if (!json_is_number(scale) || !isfinite(r->scale))
        return bad(o, "no scale", e);
    return take_aliases(j, r) ? ERR_OK : bad(o, "an alias is no string", e);
}

enum err_code expert_record_parse(const struct memtier_object *o, struct expert_record **ret,
                                  struct err *e)
{
    json_error_t je;
    if (strncmp(o->name, EXPERT_PREFIX, strlen(EXPERT_PREFIX)) != 0)
        return bad(o, "not an expert", e);
    json_t *j = json_loadb(o->meta, o->meta_bytes, JSON_REJECT_DUPLICATES, &je);
    if (!j)
        return bad(o, je.text, e);
    struct expert_record *r = mem_alloc(sizeof(*r));
    enum err_code rc = take_fields(o, j, r, e);
    json_decref(j);
    if (rc == ERR_OK)
        *ret = r;
    else
        expert_record_close(&r);
    return rc;
}

static bool same(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

bool expert_record_equal(const struct expert_record *a, const struct expert_record *b)
{
    bool equal = same(a->name, b->name) && same(a->set, b->set) && same(a->base, b->base) &&
                 same(a->adapter_set, b->adapter_set) && a->scale == b->scale &&
                 same(a->description, b->description) && same(a->system, b->system) &&
                 same(a->template_source, b->template_source) && same(a->licence, b->licence) &&
                 a->aliases_count == b->aliases_count;
    for (size_t i = 0; equal && i < a->aliases_count; i++)
        equal = same(a->aliases[i], b->aliases[i]);
    return equal;
}

/* ---- finding ---- */

static bool answers_to(const struct expert_record *r, const char *name)
{
    for (size_t i = 0; i < r->aliases_count; i++)
        if (strcmp(r->aliases[i], name) == 0)
            return true;
    return false;
}

static enum err_code not_found(struct memtier_store *store, const char *name, struct err *e)
{
    struct buf list = {0};
    for (size_t i = 0; i < memtier_store_objects(store) && list.len < 300; i++) {
        const char *o = memtier_store_object_at(store, i)->name;
        if (strncmp(o, EXPERT_PREFIX, strlen(EXPERT_PREFIX)) == 0)
            buf_printf(&list, "%s%s", list.len ? ", " : "", o + strlen(EXPERT_PREFIX));
    }
    enum err_code rc = err_set(e, ERR_NOT_FOUND, "no expert '%.100s' in %.150s; there is %s", name,
                               memtier_store_path(store), list.len ? list.data : "none yet");
    buf_done(&list);
    return rc;
}

enum err_code expert_record_find(struct memtier_store *store, const char *name,
                                 struct expert_record **ret, struct err *e)
{
    char *object = mem_format(EXPERT_PREFIX "%s", name);
    const struct memtier_object *o = memtier_store_find(store, object);
    free(object);
    if (o)
        return expert_record_parse(o, ret, e);
    for (size_t i = 0; i < memtier_store_objects(store); i++) {
        struct expert_record *r = NULL;
        o = memtier_store_object_at(store, i);
        if (strncmp(o->name, EXPERT_PREFIX, strlen(EXPERT_PREFIX)) != 0 ||
            expert_record_parse(o, &r, NULL) != ERR_OK)
            continue;
        if (answers_to(r, name)) {
            *ret = r;
            return ERR_OK;
        }
        expert_record_close(&r);
    }
    return not_found(store, name, e);
}
