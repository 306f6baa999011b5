/* Graph simplification: reachable nodes only, bodies simplified, loops that only copy forwarded,
 * equal nodes merged by hash-consing as they are made again. */
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
                        struct ir_counts *counts)
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
    if (ir_loop_is(&simple, IR_OPER_TAKE_OUTS)) {
        ir_body_done(&simple.body);
        return opt_at_outs(n, key.operand[0], &key);
    }
    return ir_node_add(n, &key, &simple.body);
}

static void set_results(struct rdu_graph *n, const struct rdu_graph *g, const uint32_t *to)
{
    for (int s = 0; s < RDU_SECTIONS; s++) {
        if (!g->section[s].ended)
            continue;
        n->section[s].input = to[g->section[s].input];
        n->section[s].result = to[g->section[s].result];
    }
}

/* The live nodes of g as they are: what motion left behind is dropped. Takes g over. */
static struct rdu_graph *sweep(struct rdu_graph *g)
{
    struct rdu_graph *n = ir_graph_like(g);
    bool *live = mem_array(BASE_MAX(g->count, 1u), sizeof(*live));
    uint32_t *to = mem_array(BASE_MAX(g->count, 1u), sizeof(*to));
    mark(g, live);
    n->counts = g->counts;
    for (uint32_t i = 0; i < g->count; i++) {
        if (!live[i])
            continue;
        struct ir_key key = g->nodes[i].key;
        struct ir_body body;
        for (uint32_t k = 0; k < key.operands; k++)
            key.operand[k] = to[key.operand[k]];
        ir_body_copy(&body, &g->nodes[i].body);
        to[i] = ir_node_add(n, &key, &body);
    }
    set_results(n, g, to);
    n->counts.nodes_after = n->count;
    free(live);
    free(to);
    rdu_graph_close(&g);
    return n;
}

struct rdu_graph *opt_simplify(const struct rdu_graph *g)
{
    struct rdu_graph *n = ir_graph_like(g);
    bool *live = mem_array(BASE_MAX(g->count, 1u), sizeof(*live));
    uint32_t *to = mem_array(BASE_MAX(g->count, 1u), sizeof(*to));
    mark(g, live);
    for (uint32_t i = 0; i < g->count; i++) {
        if (live[i])
            to[i] = rebuild(n, &g->nodes[i], to, &n->counts);
    }
    n->counts.nodes_before = g->count;
    n->counts.nodes_after = n->count;
    set_results(n, g, to);
    free(live);
    free(to);
    return n->counts.hoisted > 0 ? sweep(n) : n;
}
