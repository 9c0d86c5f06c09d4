"""Image-and-spatial transformer networks (Lee et al., MICCAI 2019) as MONAI components.

Where things are, in reading order: no module comes before one that it imports.

- :mod:`istn_monai.geometry`: maps and sampling.
  :mod:`~istn_monai.geometry.separable` (linear maps along each axis),
  :mod:`~istn_monai.geometry.sampling` (Warp, the only file that calls ``grid_sample``),
  :mod:`~istn_monai.geometry.bending`,
  :mod:`~istn_monai.geometry.transformation` (theta to displacement field: what all transformations share),
  :mod:`~istn_monai.geometry.affine`, :mod:`~istn_monai.geometry.bspline`, :mod:`~istn_monai.geometry.dense`,
  :mod:`~istn_monai.geometry.svf` (velocity field), :mod:`~istn_monai.geometry.names` (of transformations),
  :mod:`~istn_monai.geometry.composite`, :mod:`~istn_monai.geometry.grids` (registration grid),
  :mod:`~istn_monai.geometry.meta` (affines of MetaTensors), :mod:`~istn_monai.geometry.exact`,
  :mod:`~istn_monai.geometry.filling` (where an image does not count),
  :mod:`~istn_monai.geometry.resampling`,
  :mod:`~istn_monai.geometry.frames` (RAS and LPS), :mod:`~istn_monai.geometry.inversion`,
  :mod:`~istn_monai.geometry.cells` (which cell of a field holds a point),
  :mod:`~istn_monai.geometry.domains` (inside or outside, as ITK has it), :mod:`~istn_monai.geometry.components`,
  :mod:`~istn_monai.geometry.world_transform`
- :mod:`istn_monai.instance_norm`, :mod:`istn_monai.convolutions`, :mod:`istn_monai.layers`,
  :mod:`istn_monai.optical_flow`, :mod:`istn_monai.stn`, :mod:`istn_monai.networks`: STN, ITN, and both joined, ISTN;
  :mod:`~istn_monai.transforms.keys` (of a pair), :mod:`istn_monai.refine_weights`,
  :mod:`istn_monai.representations` (what is registered, by name),
  :mod:`istn_monai.guidance` (labels, landmarks and masks of the pair in hand),
  :mod:`istn_monai.local_correlation`, :mod:`istn_monai.mind`, :mod:`istn_monai.mutual_information`,
  :mod:`istn_monai.window` (where a pair is compared) and :mod:`istn_monai.objective`: what a refinement minimizes;
  :mod:`istn_monai.losses`: STN-u, STN-s, ISTN-e, ISTN-i; :mod:`istn_monai.adam`;
  :mod:`istn_monai.levels` (coarse to fine), :mod:`istn_monai.descent` (steps, of which the best counts),
  :mod:`istn_monai.directions` (one way or both), :mod:`istn_monai.turns` (one component after the other);
  :mod:`istn_monai.refinement`: test-time refinement for the one pair in hand; :mod:`istn_monai.inferer`: refinement as
  a MONAI inferer; :mod:`istn_monai.linear_registration` (from many starts), :mod:`istn_monai.alignment` and
  :mod:`istn_monai.structure_alignment`: initial alignment; :mod:`istn_monai.metrics`,
  :mod:`istn_monai.learn2reg_metrics`
- :mod:`istn_monai.io`: files in, files out.
  :mod:`~istn_monai.io.whole` (written to the end), :mod:`~istn_monai.io.paths`, :mod:`~istn_monai.io.locks`,
  :mod:`~istn_monai.io.staging` (results that appear together), :mod:`~istn_monai.io.simple_itk`,
  :mod:`~istn_monai.io.nifti_headers`, :mod:`~istn_monai.io.packed`, :mod:`~istn_monai.io.hashes`,
  :mod:`~istn_monai.io.nifti_frames` (where a file's image lies),
  :mod:`~istn_monai.io.readers`, :mod:`~istn_monai.io.file_checks`, :mod:`~istn_monai.io.values`,
  :mod:`~istn_monai.io.dicom_headers`, :mod:`~istn_monai.io.dicom_stack`, :mod:`~istn_monai.io.dicom_planes`,
  :mod:`~istn_monai.io.dicom` (a series as an image),
  :mod:`~istn_monai.io.images`, :mod:`~istn_monai.io.json_files`, :mod:`~istn_monai.io.landmark_tables`,
  :mod:`~istn_monai.io.landmark_markups`, :mod:`~istn_monai.io.voxel_landmarks` (Learn2Reg's),
  :mod:`~istn_monai.io.landmarks`, :mod:`~istn_monai.io.nifti`,
  :mod:`~istn_monai.io.itk_geometry`, :mod:`~istn_monai.io.foreign_transforms`, :mod:`~istn_monai.io.transform_kinds`,
  :mod:`~istn_monai.io.whole_transforms` (not truncated), :mod:`~istn_monai.io.elastix`,
  :mod:`~istn_monai.io.itk_transforms`, :mod:`~istn_monai.io.matrix_files` (greedy's and FSL's),
  :mod:`~istn_monai.io.any_transform` (by its name), :mod:`~istn_monai.io.learn2reg` (that challenge's files),
  :mod:`~istn_monai.io.datalist`,
  :mod:`~istn_monai.io.subject_files` (which files belong together), :mod:`~istn_monai.io.named_files` (by equal names),
  :mod:`~istn_monai.io.nnunet`, :mod:`~istn_monai.io.bids_files` and :mod:`~istn_monai.io.bids`,
  :mod:`~istn_monai.io.data_folders` (in whichever layout); :mod:`istn_monai.foreign_networks`: of somebody else
- :mod:`istn_monai.transforms`: MONAI dictionary transforms of a pair.
  :mod:`~istn_monai.transforms.checks`, :mod:`~istn_monai.transforms.inverses`,
  :mod:`~istn_monai.transforms.registration_grid`, :mod:`~istn_monai.transforms.starts` (initial alignments),
  :mod:`~istn_monai.transforms.map_files` (maps that come with an image), :mod:`~istn_monai.transforms.preprocessing`,
  :mod:`~istn_monai.transforms.landmarks`, :mod:`~istn_monai.transforms.guidance`,
  :mod:`~istn_monai.transforms.representations`,
  :mod:`~istn_monai.transforms.augmentation`, :mod:`~istn_monai.transforms.contrast`,
  :mod:`~istn_monai.transforms.postprocessing`
- :mod:`istn_monai.folders`: bundles, runs and checkpoints on disk; :mod:`istn_monai.processors`: threads of a command;
  :mod:`istn_monai.pace`: how far a long work is;
  :mod:`istn_monai.kinds`: of what kind a setting is;
  :mod:`istn_monai.options`: the settings by name; :mod:`istn_monai.arguments`: what stands on the command line;
  :mod:`istn_monai.frozen`: representations that do not learn; :mod:`istn_monai.network_definitions` and
  :mod:`istn_monai.network_settings`: what a network is built from; :mod:`istn_monai.weights`: weights that say what
  they are
- :mod:`istn_monai.qa`: judging a registered pair.
  :mod:`~istn_monai.qa.rules`, :mod:`~istn_monai.qa.measures`, :mod:`~istn_monai.qa.panels`,
  :mod:`~istn_monai.qa.page`, :mod:`~istn_monai.qa.sprites`, :mod:`~istn_monai.qa.viewer`,
  :mod:`~istn_monai.qa.cohort`, :mod:`~istn_monai.qa.inspector`
- :mod:`istn_monai.apply`: a written transform on other files; :mod:`istn_monai.compose`: several joined into one;
  :mod:`istn_monai.transform_info`: what one is; :mod:`istn_monai.moved_points`: a pair's landmarks
- :mod:`istn_monai.workflow`: what the bundle's configs call.
  :mod:`~istn_monai.workflow.errors`, :mod:`~istn_monai.workflow.distributed`,
  :mod:`~istn_monai.workflow.console` (what a command says), :mod:`~istn_monai.workflow.settings`,
  :mod:`~istn_monai.workflow.item_cache` (prepared pairs on disk), :mod:`~istn_monai.workflow.pair_files`,
  :mod:`~istn_monai.workflow.datasets`, :mod:`~istn_monai.workflow.datalist_checks`,
  :mod:`~istn_monai.workflow.run_lock`,
  :mod:`~istn_monai.workflow.checkpoints`, :mod:`~istn_monai.workflow.epoch_lines`,
  :mod:`~istn_monai.workflow.how_to` (register with what was trained), :mod:`~istn_monai.workflow.inferers`,
  :mod:`~istn_monai.workflow.training`, :mod:`~istn_monai.workflow.recipe` (of a long training),
  :mod:`~istn_monai.workflow.curves`,
  :mod:`~istn_monai.workflow.provenance` (what a result was made of), :mod:`~istn_monai.workflow.failures`,
  :mod:`~istn_monai.workflow.progress`, :mod:`~istn_monai.workflow.pair_metrics`,
  :mod:`~istn_monai.workflow.result_folders`, :mod:`~istn_monai.workflow.inverse`,
  :mod:`~istn_monai.workflow.results`,
  :mod:`~istn_monai.workflow.learn2reg` (a submission to that challenge),
  :mod:`~istn_monai.workflow.summaries`, :mod:`~istn_monai.workflow.evaluation`,
  :mod:`~istn_monai.workflow.representations` (for another engine), :mod:`~istn_monai.workflow.cohorts`,
  :mod:`~istn_monai.workflow.host_requests`,
  :mod:`~istn_monai.workflow.host_training`, :mod:`~istn_monai.workflow.start`
- :mod:`istn_monai.pairing`: random pairs of a folder of subjects; :mod:`istn_monai.synthetic`: the paper's toy
  (:mod:`~istn_monai.synthetic.vessels`, :mod:`~istn_monai.synthetic.pairs`)
- :mod:`istn_monai.planning`: settings for a data set from what it is.
  :mod:`~istn_monai.planning.dataset` (a folder or a datalist), :mod:`~istn_monai.planning.subjects`,
  :mod:`~istn_monai.planning.fingerprint`, :mod:`~istn_monai.planning.grid` and :mod:`~istn_monai.planning.rules` (what
  is chosen, and why), :mod:`~istn_monai.planning.plan`
- :mod:`istn_monai.runs`: training and evaluation with a data set's settings;
  :mod:`istn_monai.registration`: pairs of files, and :class:`istn_monai.RegisterISTNd` for any ``Compose``;
  :mod:`istn_monai.engines`: which engine registers; :mod:`istn_monai.file_commands` and
  :mod:`istn_monai.__main__`: the commands
"""

from istn_monai._lazy import lazy

__version__ = "0.1.0"
__getattr__, __all__ = lazy(
    __name__,
    {
        "geometry.sampling": ["Warp", "warp"],
        "geometry.transformation": ["Transformation"],
        "geometry.affine": ["AffineTransformation"],
        "geometry.grids": ["Grid"],
        "geometry.bspline": ["BSplineTransformation"],
        "geometry.dense": ["DenseTransformation"],
        "geometry.svf": ["SVFTransformation"],
        "geometry.composite": ["CompositeTransformation", "spatial_transformation"],
        "geometry.world_transform": ["WorldTransform", "world_transform"],
        "layers": ["SoftClamp"],
        "network_settings": ["NetworkSettings"],
        "stn": ["STN", "PyramidSTN"],
        "frozen": ["FrozenITN"],
        "networks": ["ISTN", "ITN", "BackboneITN", "DisplacementNetwork", "ISTNOutput", "SegmentationITN"],
        "losses": ["DiceCrossEntropyLoss", "DiceMSELoss", "ISTNLoss"],
        "refinement": ["Refiner"],
        "inferer": ["RefineInferer"],
        "io.landmarks": ["Points", "read_points", "write_points"],
        "io.itk_transforms": ["read_transform", "write_transform"],
        "transforms.preprocessing": [
            "CheckPaird", "ConcatPaird", "InitialAlignmentd", "LoadPaird", "NormalizeIntensityRanged", "SoIGroupsd",
        ],
        "transforms.registration_grid": ["RegistrationGridd"],
        "transforms.landmarks": ["AddLandmarkChannelsd"],
        "transforms.representations": ["RepresentationMapsd"],
        "transforms.guidance": ["Guidanced"],
        "transforms.augmentation": ["RandDeformd"],
        "transforms.contrast": ["RandContrastMapd", "RandImageFromLabelsd"],
        "transforms.postprocessing": ["Representd", "WarpPaird"],
        "registration": ["RegisterISTNd", "Registration"],
    },
)  # fmt: skip
