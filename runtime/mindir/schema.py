"""The messages of MindIR: mind_ir.proto of MindSpore 2.10, which contains the messages of earlier releases.

Each field is "number name kind"; a star marks a repeated field. A kind is `int` (a varint: integers, enums, truth
values), `float`, `double`, `text` (UTF-8), `bytes`, or the name of a message.
"""

from __future__ import annotations

from typing import NamedTuple


class Field(NamedTuple):
    """One field of a message."""

    name: str
    kind: str
    repeated: bool


_MESSAGES = {
    "ModelProto": (
        "1 ir_version text; 2 producer_name text; 3 producer_version text; 4 domain text; 5 model_version text; "
        "6 doc_string text; 7 graph GraphProto; 8 functions GraphProto*; 9 preprocessor PreprocessorProto; "
        "10 little_endian int; 11 parallel ParallelProto; 12 primitives PrimitiveProto*; 13 mind_ir_version int; "
        "14 user_info UserInfoEntry*"
    ),
    "GraphProto": (
        "1 node NodeProto*; 2 name text; 3 parameter TensorProto*; 4 doc_string text; 5 input ValueInfoProto*; "
        "6 output ValueInfoProto*; 7 bprop_hash text; 8 attribute AttributeProto*; 9 bprop_filepath text; "
        "10 map_parameter MapTensorProto*"
    ),
    "NodeProto": (
        "1 input text*; 2 output text*; 3 name text; 4 op_type text; 5 attribute AttributeProto*; 6 doc_string text; "
        "7 domain text; 8 node_attr AttributeProto*; 9 primal_attr AttributeProto*"
    ),
    "PrimitiveProto": (
        "1 name text; 2 op_type text; 3 attribute AttributeProto*; 4 instance_name text; 5 prim_type int"
    ),
    "AttributeProto": (
        "1 name text; 2 f float; 3 i int; 4 d double; 5 s bytes; 6 t TensorProto; 7 g GraphProto; 8 floats float*; "
        "9 doubles double*; 10 ints int*; 11 strings bytes*; 12 tensors TensorProto*; 13 graphs GraphProto*; "
        "14 doc_string text; 15 ref_attr_name text; 16 type int; 17 values AttributeProto*; 18 seq_info SeqInfoProto; "
        "19 functor FunctorProto; 20 graph_holder ScalarGraphHolderProto"
    ),
    "TensorProto": (
        "1 dims int*; 2 data_type int; 3 float_data float*; 4 int32_data int*; 5 string_data bytes*; "
        "6 int64_data int*; 7 name text; 8 doc_string text; 9 raw_data bytes; 10 double_data double*; "
        "11 uint64_data int*; 12 external_data ExternalDataProto; 13 ref_key text; 14 min_dims int*; 15 max_dims int*; "
        "16 compression_type int; 17 quant_params QuantParamProto*"
    ),
    "ExternalDataProto": "1 location text; 2 offset int; 3 length int",
    "ValueInfoProto": (
        "1 name text; 2 tensor TensorProto*; 3 doc_string text; 4 denotation text; 5 attr_info AttributeProto"
    ),
    "SeqInfoProto": "1 is_dyn_len int; 2 tuple_elem_item AttributeProto",
    "QuantParamProto": "1 quant_algo_name text; 2 attribute AttributeProto*",
    "FunctorProto": "1 type int; 2 name text; 3 values AttributeProto*",
    "MapTensorProto": (
        "1 name text; 2 default_value AttributeProto; 3 key_tensor TensorProto; 4 value_tensor TensorProto; "
        "5 status_tensor TensorProto"
    ),
    "PreprocessorProto": "1 op PreprocessOpProto*",
    "PreprocessOpProto": (
        "1 input_columns text; 2 output_columns text; 3 project_columns text; 4 op_type text; 5 operations text; "
        "6 offload int"
    ),
    "ParallelProto": "1 layout LayoutProto*",
    "LayoutProto": (
        "1 name text; 2 device_arrangement_int int*; 3 tensor_map_int int*; 4 slice_shape_int int*; 5 field_size int; "
        "6 uniform_split int; 7 opt_shard_group text; 8 pipeline_shared int; 9 is_send int; 10 peer_rank int; "
        "11 sr_tag int; 12 opt_shard_slice_shape_int int*"
    ),
    "UserInfoEntry": "1 key text; 2 value text",
    "ScalarGraphHolderProto": "1 scalar_node ScalarNodeProto*; 2 input_shape_index int*",
    "ScalarNodeProto": "1 scalar_op_type int; 2 in_index int*; 3 value int*",
}


def _fields(text: str) -> dict[int, Field]:
    found = {}
    for entry in text.split(";"):
        number, name, kind = entry.split()
        found[int(number)] = Field(name, kind.removesuffix("*"), kind.endswith("*"))
    return found


MESSAGES: dict[str, dict[int, Field]] = {name: _fields(text) for name, text in _MESSAGES.items()}
