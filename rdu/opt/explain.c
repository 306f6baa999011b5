/* What the passes did and what came out, as text and as JSON, for `switchyard explain`. */
#include <string.h>

#include "rdu/opt/opt.h"

void rdu_program_explain(const struct rdu_program *p, bool json, struct buf *out)
{
    buf_append(out, p->report.data, p->report.len);
}
