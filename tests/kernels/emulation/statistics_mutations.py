"""Mutants of router statistics, load balancing and uniform numbers: ties, limits, sums, biases, places, and what is
skipped or masked."""

from emulated_programs import STATISTICS
from mutation_rules import BARRIERS, Rule, Subject

FILES = ("router.cu", "balance.cu", "uniform.cu", "priority.h", "hash.h", "warp.cuh")

SUMS = (
    Rule("sum without its last step", r"distance > 0; distance /= 2", "distance > 1; distance /= 2"),
    Rule("lowest for highest", r"value = fmaxf\(", "value = fminf(", "warp.cuh"),
    Rule("sum of one lane", r"(\w+) = warp_sum\(\1\);", ";"),
    Rule("mean of one lane", r"softmax \? warp_sum\(total\)", "softmax ? total"),
    Rule("highest of one lane", r"highest = warp_max\(highest\);", ";"),
    Rule("first warp left out", r"int warp = 0; warp < WARPS", "int warp = 1; warp < WARPS"),
    Rule("rows of warps overlap", r"sums\[warp \* stride \+ e\]", "sums[warp * (stride - 1) + e]"),
    Rule("first blocks left out", r"block = (warp|lane)_id\(\);", r"block = \1_id() + 1;"),
    Rule("blocks counted twice", r"block \+= (SUMMERS|WARP)\)", r"block += \1 - 1)"),
    Rule("second warp left out", r"int warp = 1; warp < SUMMERS", "int warp = 2; warp < SUMMERS"),
    Rule("sums of experts that are none", r"warp_id\(\) == 0 && e < experts", "warp_id() == 0"),
    Rule("z by every block", r"blockIdx\.x > 0 \|\| ", ""),
    Rule("sums overlap", r"blocks\) \* \(router\.experts \+ 1\)\)", "blocks) * router.experts)"),
    Rule("workspace too small", r"2 \* router\.experts \+ 1", "2 * router.experts"),
)
CHOICE = (
    Rule("ties to the higher lane", r"other_expert < expert", "other_expert > expert"),
    Rule("ties to the higher expert of a lane", r"key > best", "key >= best"),
    Rule("masked experts open", r"if \(values\[j\] > -INFINITY\) open", "open"),
    Rule("chosen stay open", r"if \(lane_id\(\) == expert % WARP\) open [^;]*;", ";"),
    Rule("all lanes close", r"if \(lane_id\(\) == expert % WARP\) open", "open"),
    Rule("choices without experts", r"if \(expert == INT_MAX\) break;", ";"),
    Rule("bias forgotten", r"bias \? values\[j\] \+ [^:]* : values", "values"),
    Rule("bias of the first experts", r"bias\[j \* WARP \+ lane_id\(\)\]", "bias[lane_id()]"),
    Rule(
        "bias in the weights",
        r"(work\.scores\[int64_t\(token\) \* experts \+ chosen\])",
        r"(\1 + (work.bias ? work.bias[chosen] : 0))",
    ),
    Rule(
        "choice by rounded scores",
        r"if \(!work\.bias\) chosen = [^;]*;((?:.|\n)*?)if \(work\.bias\) ",
        r"\1",
    ),
    Rule("weights of no expert", r"= chosen < 0 \? 0 : ", "= "),
    Rule("load of no expert", r"if \(chosen >= 0\) loads", "loads"),
    Rule("one choice too many", r"lane_id\(\) < choices", "lane_id() <= choices"),
    Rule("loads not begun anew", r"loads\[warp\]\[j \* WARP \+ lane_id\(\)\] = 0;", ";"),
)
SCORES = (
    Rule("highest not taken off", r"expf\(values\[j\] - highest\)", "expf(values[j])"),
    Rule("no row without experts", r"if \(highest == -INFINITY\) highest = 0;", ";"),
    Rule("sums of a row without experts", r"total == 0 \? 0 : ", ""),
    Rule("sigmoid of positive logits", r"values\[j\] < 0 \? small : 1", "1"),
    Rule("logits of no expert", r"expert < experts \? (work\.logits\[row \+ expert\]) : -INFINITY", r"\1"),
    Rule("scores of no expert", r"if \(j \* WARP \+ lane_id\(\) < experts\) work", "work"),
    Rule("lse not squared", r"square \+= lse \* lse", "square += lse"),
    Rule("importance of one token", r"importance\[j\] \+= ", "importance[j] = "),
    Rule("tokens of other blocks", r"token \+= gridDim\.x \* WARPS", "token += WARPS"),
    Rule("one token too many", r"token < work\.router\.tokens", "token <= work.router.tokens"),
    Rule("no block for the rest", r"\(tokens \+ WARPS - 1\) / WARPS", "tokens / WARPS"),
    Rule("one expert too many", r"experts > PER_LANE \* WARP\)", "experts > PER_LANE * WARP + 1)"),
)
BACKWARD = (
    Rule("half of the z-loss", r"2 \* \*work\.grad_z", "*work.grad_z"),
    Rule("z-loss by logits", r"expert\] - lse\)", "expert])"),
    Rule("no mean", r"grads\[j\] - mean", "grads[j]"),
    Rule("weights not in the mean", r"total = chosen_grad \* chosen_score", "total = 0"),
    Rule("scores not in the mean", r"total \+= grads\[j\] \* scores\[j\]", "total += 0"),
    Rule("half of the sigmoid's slope", r"scores\[j\] \* \(1 - scores\[j\]\)", "scores[j]"),
    Rule("half of the slope of the chosen", r"chosen_score \* \(1 - chosen_score\)", "chosen_score"),
    Rule("importance for scores", r"grads\[j\] \+= work", "grads[j] = work"),
    Rule("gradients of no expert", r"if \(expert >= experts\) continue;", ";"),
    Rule("gradients of no choice", r"if \(chosen >= 0\) work\.grad", "work.grad"),
)
CAPACITY = (
    Rule("one edge too many", r"position < work\.limit\.capacity", "position <= work.limit.capacity"),
    Rule("fewer drops than none", r"max\(0, total - work\.limit\.capacity\)", "total - work.limit.capacity"),
    Rule("ties by priority to both", r"tile\[i\] < mine", "tile[i] <= mine"),
    Rule("ties by priority to the later", r"first \+ i < token", "first + i > token"),
    Rule("rest of the last tile", r"min\(THREADS, size - first\)", "THREADS"),
    Rule("order of no token", r"if \(token < size\) work\.order", "work.order"),
    Rule("order forgotten", r"order \? order\[place\] : place", "place"),
    Rule("groups of equal size", r"return min\(([^,]*), [^;]*;", r"return \1;", "balance.cu"),
    Rule("an edge behind the end", r"index >= size \* limit\.choices", "index > size * limit.choices"),
    Rule(
        "token after token",
        r"index % size;((?:.|\n)*?)index / size",
        r"index / limit.choices;\1index % limit.choices",
    ),
    Rule("positions forget the count", r"before \+ __popc\(same & lanes", "__popc(same & lanes"),
    Rule("positions count this lane", r"__popc\(same & lanes_before\(\)\)", "__popc(same)"),
    Rule("counts forget the count", r"= before \+ __popc\(same\);", "= __popc(same);"),
    Rule("every lane counts", r" && \(same & lanes_before\(\)\) == 0\)", ")"),
    Rule("warps overlap", r"warp_id\(\) \* ROUNDS \* WARP", "warp_id() * WARP"),
    Rule("warps not begun at 0", r"own\[e\] = 0;", ";"),
    Rule("starts with themselves", r"(\w+\[[^;=]* = total;)(\s*)(total \+= count;)", r"\3\2\1"),
    Rule("warps not added", r"position\[round\] \+ own\[expert\[round\]\]", "position[round]"),
    Rule("places without edges", r"expert\[round\] < 0 \? -1 : position", "position"),
    Rule("starts of no expert", r"expert < 0 \? 0 : work\.starts", "work.starts"),
    Rule("chunks not added", r"work\.positions\[edge\] \+ start", "work.positions[edge]"),
    Rule("groups overlap", r"index / experts \* work\.chunks \* experts", "index / experts * experts"),
    Rule("an expert behind the last", r"if \(index >= int64", "if (index > int64"),
    Rule("rest left out", r"\(count \+ unit - 1\) / unit", "count / unit"),
    Rule("workspace too small", r"\(limit\.tokens \+ chunks", "(chunks"),
    Rule("NaN by its bits", r"if \(priority != priority\) return 0;", ";"),
    Rule("two zeros", r"priority \+= 0\.f;", ";"),
    Rule("negative ones turned round", r"bits >> 31 \? bits : ", ""),
)
BALANCE = (
    Rule("sum in 32 bits", r"int64_t all = 0", "int32_t all = 0"),
    Rule(
        "product in 32 bits",
        r"experts \* int64_t\(loads\[e\]\)",
        "int64_t(int32_t(uint32_t(experts) * uint32_t(loads[e])))",
    ),
    Rule("loss without loads", r"all > 0 && tokens > 0 \? ([^:]*) : 0", r"\1"),
    Rule("loss not times experts", r"float\(experts\) /", "1.f /"),
    Rule("loss by every lane", r"if \(lane_id\(\) == 0\) \*loss", "*loss"),
    Rule("loss without importance", r"slopes\[e\] \* importance\[e\]", "slopes[e]"),
    Rule("the mean is too little", r"\(missing > 0\)", "(missing >= 0)"),
    Rule("no bias", r"bias\[e\] \+ rate", "rate"),
)
UNIFORM = (
    Rule("rest of a stream left out", r"\(count \+ CHUNK - 1\) / CHUNK", "count / CHUNK"),
    Rule("numbers behind the end", r"begin \+ CHUNK < count \? begin \+ CHUNK : count", "begin + CHUNK"),
    Rule("first chunk alone", r"blockIdx\.x % chunks \* CHUNK", "0"),
    Rule("first stream alone", r"stream = blockIdx\.x / chunks", "stream = 0"),
    Rule("key of the first stream", r"(low|high)\[stream\]", r"\1[0]"),
    Rule("threads alike", r"begin \+ threadIdx\.x", "begin"),
    Rule("places of a chunk", r"uint32_t\(i\)", "uint32_t(i - begin)"),
    Rule("streams overlap", r"stream \* count \+ i", "stream * (count - 1) + i"),
    Rule("keys exchanged", r"\(first_key, second_key", "(second_key, first_key"),
    Rule("key forgotten", r" (\+ low|\^ high);", ";"),
    Rule("shifted too far", r"bits >> (\d+)", r"bits >> (\1 + 1)"),
    Rule("not multiplied", r"\* 0x\w+u", "* 1u"),
    Rule("a bit too many", r"0xFFFFFF\b", "0x1FFFFFF"),
)
RULES = (*BARRIERS, *SUMS, *CHOICE, *SCORES, *BACKWARD, *CAPACITY, *BALANCE, *UNIFORM)

# More than one trip of every loop, more than one block, groups of several chunks, and a rest of everything.
PLAIN_RUNS = (
    "what=balance",
    "what=balance experts=33",
    "what=balance empty=1",
    "what=balance tokens=0",
    "what=capacity",
    "what=capacity priority=1",
    "what=capacity tokens=1500 group=700 choices=2 experts=5 capacity=100 priority=1",
    "what=capacity tokens=1300 group=1300 choices=1 experts=300 capacity=0",
    "what=router tokens=40 experts=40 choices=3 bias=1 score=sigmoid",
    "what=router tokens=3 experts=33 choices=8",
    "what=router tokens=9 experts=3 choices=5 bias=1",
    "what=router tokens=20 experts=300 choices=8 bias=1",
    "what=router tokens=4300 experts=5 choices=2",
    "what=uniform",
)
CHECKED_RUNS = (
    "what=balance",
    "what=capacity tokens=700 experts=40 priority=1",
    "what=capacity tokens=1300 group=600 choices=2 experts=3 capacity=100 priority=1",
    "what=router tokens=40 experts=40 choices=3 bias=1 score=sigmoid",
    "what=router tokens=37 experts=7 choices=2",
    "what=uniform streams=2 count=2100",
)

EQUIVALENT: dict[str, str] = {}

TITLE = "Router statistics, load balancing and uniform numbers"
SUBJECT = Subject(TITLE, STATISTICS, FILES, RULES, CHECKED_RUNS, PLAIN_RUNS, EQUIVALENT)
