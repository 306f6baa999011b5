/* What the models of a store will ask of the memory, before any of them is opened. */
#include <string.h>

#include "experts/serve.h"

enum rdu_kv_type kv_type_of(enum expert_kv_type type)
{
    switch (type) {
    case EXPERT_KV_F32:
        return RDU_KV_F32;
    case EXPERT_KV_Q8_0:
        return RDU_KV_Q8_0;
    case EXPERT_KV_F16:
        break;
    }
    return RDU_KV_F16;
}

enum err_code experts_kv_token_bytes(struct memtier_store *store, enum expert_kv_type type, uint64_t *ret,
                                     struct err *e)
{
    uint64_t most = 0;
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
            uint64_t block = (uint64_t)m->layers * m->kv_heads * rdu_kv_block_bytes(kv_type_of(type), m->head_dim);
            most = BASE_MAX(most, block / RDU_KV_BLOCK);
        }
        set_close(&set);
    }
    *ret = most;
    return ERR_OK;
}
