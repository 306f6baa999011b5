/* Graph simplification: reachable nodes only, bodies simplified, loops that only copy forwarded, equal
 * nodes merged by hash-consing as they are made again. */
#include <stdlib.h>
#include <string.h>

#include "rdu/opt/opt.h"

static void mark(const struct rdu_graph *g, bool *live)
{
    for (int s = 0; s < RDU_SECTIONS; s++) {
        if (g->section[s].ended) {
            live[g->section[s].result] = true;
            live[g->section[s].input] = true;
        }
    }
    for (uint32_t i = g->count; i-- > 0;) {
        const struct ir_key *key = &g->nodes[i].key;
        live[i] |= (key->effect & IR_WRITES_KV) != 0;
        for (uint32_t k = 0; live[i] && k < key->operands; k++)
            live[key->operand[k]] = true;
    }
}

/* The node of g in n; `to` maps what came before. */
static uint32_t rebuild(struct rdu_graph *n, const struct ir_node *old, const uint32_t *to,
                        struct opt_counts *counts)
{
    struct ir_key key = old->key;
    struct ir_shape shapes[IR_OPERANDS];
    memset(shapes, 0, sizeof(shapes));
    for (uint32_t k = 0; k < key.operands; k++) {
        key.operand[k] = to[key.operand[k]];
        shapes[k] = n->nodes[key.operand[k]].key.shape;
    }
    if (key.kind != IR_LOOP)
        return ir_node_add(n, &key, NULL);
    struct ir_node simple = {.key = key};
    ir_body_simplify(&old->body, &simple.body, &counts->body);
    counts->ops_before += old->body.count;
    uint32_t operand;
    if (ir_loop_is_copy(&simple, shapes, &operand)) {
        counts->copies++;
        ir_body_done(&simple.body);
        return key.operand[operand];
    }
    counts->ops_after += simple.body.count;
    return ir_node_add(n, &key, &simple.body);
}

struct rdu_graph *opt_simplify(const struct rdu_graph *g, struct opt_counts *ret)
{
    struct rdu_graph *n = ir_graph_like(g);
    bool *live = mem_array(BASE_MAX(g->count, 1u), sizeof(*live));
    uint32_t *to = mem_array(BASE_MAX(g->count, 1u), sizeof(*to));
    memset(ret, 0, sizeof(*ret));
    mark(g, live);
    ret->nodes_before = g->count;
    for (uint32_t i = 0; i < g->count; i++) {
        if (live[i])
            to[i] = rebuild(n, &g->nodes[i], to, ret);
    }
    ret->nodes_after = n->count;
    for (int s = 0; s < RDU_SECTIONS; s++) {
        if (!g->section[s].ended)
            continue;
        n->section[s].input = to[g->section[s].input];
        n->section[s].result = to[g->section[s].result];
    }
    free(live);
    free(to);
    return n;
}
