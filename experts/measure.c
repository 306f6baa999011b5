/* What the models of a store will ask of the memory, before any of them is opened. */
#include <string.h>

#include "experts/set.h"

enum err_code experts_kv_token_bytes(struct memtier_store *store, enum expert_kv_type type, uint64_t *ret,
                                     struct err *e)
{
    uint64_t most = 0, elem = type == EXPERT_KV_F16 ? 2 : 4;
    for (size_t i = 0; i < memtier_store_objects(store); i++) {
        const struct memtier_object *o = memtier_store_object_at(store, i);
        struct set_meta *set = NULL;
        if (strncmp(o->name, SET_PREFIX, strlen(SET_PREFIX)) != 0)
            continue;
        enum err_code code = set_parse(o, &set, e);
        if (code != ERR_OK)
            return code;
        if (!set->is_adapter) {
            const struct model_shape *m = &set->shape;
            most = BASE_MAX(most, 2 * elem * m->layers * m->kv_heads * m->head_dim);
        }
        set_close(&set);
    }
    *ret = most;
    return ERR_OK;
}
